# Seed 0 of all rows and some second seeds, at commit 9e59a02, one process on each of two cores, one
# thread each (XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"); the rows "base:
# muon 1e-2" and "separate documents" are those of 2026-11-24-study-documents-cpu.
python scripts/study.py --study=configs/studies/recipe.py --workdir=runs/recipe \
    --config.data.sources="('texts/paragraphs.jsonl',)"

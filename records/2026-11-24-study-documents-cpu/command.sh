# Rows "base: muon 1e-2" and "separate documents" of the study, at commit 7a3cefe; paragraphs.jsonl
# holds shuffled paragraphs of English Wikipedia (2015), one document each.
python scripts/study.py --study=configs/studies/recipe.py --workdir=runs/recipe \
    --config.data.sources="('paragraphs.jsonl',)"

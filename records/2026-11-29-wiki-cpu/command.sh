# English Wikipedia (2015), 4 of 20 random shards, 64 MB of text; GLUE in its usual folders.
# Commit 9e59a02. Fine-tuning on CoLA and SST-2 was not finished; the report was written with the other two tasks.
python -m cramjax.main --config=configs/quickstart.py --workdir=runs/wiki-cpu \
  --config.data.sources="('wiki/train-000.txt.xz','wiki/train-001.txt.xz','wiki/train-002.txt.xz','wiki/train-003.txt.xz')" \
  --config.data.max_tokens_per_char=0.35 --config.data.held_out_share=0.005 \
  --config.model.vocab_size=8192 \
  --config.budget.tokens=0 --config.budget.hours=0.2 \
  --config.glue.tasks="('rte','mrpc','cola','sst2')" --config.glue.data_dir=glue_data --config.glue.max_length=64 \
  --config.glue.max_train_rows=4000 --config.glue.learning_rates="(1e-3,)"

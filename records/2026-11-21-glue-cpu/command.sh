# English Wikipedia (2015), 8 of 20 random shards, 128 MB of text; GLUE in its usual
# folders, in which MNLI, QNLI and QQP are samples of the real training sets.
python -m cramjax.main --config=configs/quickstart.py --workdir=runs/glue-cpu \
  --config.data.sources="('wiki/train-00[0-7].txt.xz',)" \
  --config.data.max_tokens_per_char=0.35 --config.data.held_out_share=0.005 \
  --config.model.vocab_size=8192 --config.model.width=160 --config.model.ffn_width=640 \
  --config.model.max_length=128 --config.curriculum.lengths="(32,128)" \
  --config.curriculum.starts="(0.0,0.7)" \
  --config.micro_batch=32 --config.batch.sequences=128 --config.batch.ramp_share=0.6 \
  --config.optimizer.name=muon --config.optimizer.learning_rate=1e-2 \
  --config.budget.tokens=0 --config.budget.hours=0.33 --config.validation.every_minutes=5 \
  --config.glue.tasks="('cola','mrpc','rte','stsb','sst2','qqp','mnli','qnli')" \
  --config.glue.data_dir=glue_data --config.glue.max_length=128 --config.glue.test_sets=False \
  --config.glue.max_train_rows=8000 --config.glue.learning_rates="(1e-3,)" \
  --config.glue.empty_second=True
# On a second core in a copy of the pretrained workdir: mnli and qnli. CoLA again, whole
# (--config.glue.max_train_rows=0), in another copy. Their entries of glue.json and their
# predictions were put into the first workdir, and the same command made the tables.

# English Wikipedia (2015), 20 .txt.xz files, and English books, 9 of them: 467 MB of text.
# A script of that time.
python scripts/measure_data.py --config=configs/a4000.py \
    --config.data.sources="('wiki/train-*.txt.xz', 'gutenberg/train-*.txt.xz')"

# Seed 0, on one thread each of two cores that other programs used, too. The text is 5 shards (80 MB) of English
# Wikipedia (2015), a blank line between documents. The rows ran as single commands with the keys of
# configs/studies/ladder.py, micro-batches of 64 and a fresh order ("random") of the first pass.
python scripts/study.py --study=configs/studies/ladder.py:M --at_once=2 --workdir=runs/ladder-m \
    --config.data.sources="('wiki/*.txt.xz',)"

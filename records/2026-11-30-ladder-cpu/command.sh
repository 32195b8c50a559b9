# The rows ran as single commands, one thread each, on two cores that other programs used, too, with the keys of
# configs/studies/ladder.py (and the rates and the budget that their names say), micro-batches of 64 and a fresh order
# ("random") of the first pass. The text is 5 shards (80 MB) of English Wikipedia (2015), a blank line between documents.
python scripts/study.py --study=configs/studies/ladder.py:S,M,L --at_once=2 --workdir=runs/ladder \
    --config.data.sources="('wiki/*.txt.xz',)"

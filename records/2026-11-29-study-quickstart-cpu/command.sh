# Seed 0 of all rows and seed 1 of two, at commit 9e59a02, one process on each of two cores, one thread each.
python scripts/study.py --study=configs/studies/quickstart.py --workdir=runs/study-quickstart

# Commit f5fc5c0; stopped by hand before its last seven rows.
python scripts/study.py --study=configs/studies/quickstart.py --workdir=runs/study-quickstart

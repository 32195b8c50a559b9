# Commit b53ea10. texts/wiki.txt.xz: the first of 20 shards of English Wikipedia (2015), a
# paragraph a line. Two rows ran at a time, each on one core; that changes no number of the
# table, since the budget is in tokens.
python - <<'PROGRAM'
import json, lzma, random

lines = lzma.open("texts/wiki.txt.xz", "rt").read().splitlines()
paragraphs = [line for line in lines if line.strip()]
random.Random(0).shuffle(paragraphs)
with open("texts/paragraphs.jsonl", "w") as file:
    for paragraph in paragraphs:
        file.write(json.dumps({"text": paragraph}) + "\n")
PROGRAM
python scripts/study.py --study=configs/studies/recipe.py --workdir=runs/recipe \
    --config.data.sources="('texts/paragraphs.jsonl',)"

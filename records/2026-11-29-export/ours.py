"""Writes what this project says: PYTHONPATH=tests python ours.py > ours.json."""

import json

from test_export import hostile

import cramjax

MASKED = [
    "the <mask> of the sea",
    "she said that it was <mask>",
    "a <mask> day, and he",
]
TEXTS = ["play some jazz", "will it rain in oslo tomorrow", "give this book five stars"]
found = {"strings": hostile(1000)}


def record(name, tokenizer, answers):
    """Adds a model's token ids and its answers."""
    rows = (tokenizer.encode(x, add_special_tokens=False) for x in found["strings"])
    found[name] = {"ids": [row.ids for row in rows], "answers": answers}


for name in ("quickstart", "modern"):
    model = cramjax.load(f"runs/{name}")
    size = model.model.vocab_size
    answers = [[text, model.fill_mask(text, size)[0]] for text in MASKED]
    record(name, model.tokenizer, answers)
model = cramjax.load_classifier("runs/intents")
answers = list(zip(TEXTS, model.predict(TEXTS), strict=True))
record("intents", model.tokenizer, answers)
print(json.dumps(found))

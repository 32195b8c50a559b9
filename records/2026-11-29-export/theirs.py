"""Compares that with what transformers says: python theirs.py ours.json."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, pipeline

TASKS = {"quickstart": "fill-mask", "modern": "fill-mask"}
TASKS["intents"] = "text-classification"

print("cramjax is installed:", bool(importlib.util.find_spec("cramjax")))
ours = json.loads(Path(sys.argv[1]).read_text())
for name, task in TASKS.items():
    folder = f"exports/{name}"
    code = {} if name == "modern" else {"trust_remote_code": True}
    model = pipeline(task, model=folder, **code)
    tokenizer = AutoTokenizer.from_pretrained(folder, **code)
    ids = tokenizer(ours["strings"], add_special_tokens=False)["input_ids"]
    same = sum(a == b for a, b in zip(ids, ours[name]["ids"], strict=True))
    print(
        f"{name}: {type(model.model).__name__}, {same} of {len(ids)} rows of ids equal"
    )
    for text, answer in ours[name]["answers"]:
        if task == "fill-mask":
            words = [x for x in model(text, top_k=len(tokenizer)) if x["token"] > 6]
            top = [x["token_str"].strip() for x in words[:5]]
            same_top = top == [word for word, _ in answer[:5]]
            probs = np.array([x["score"] for x in words])
            gap = np.abs(probs / probs.sum() - np.array([p for _, p in answer])).max()
            print(f"  {text!r}: {' '.join(top)}; same: {same_top}; within {gap:.1e}")
        else:
            [found] = model([text])
            gap, same_label = (
                abs(found["score"] - answer[1]),
                found["label"] == answer[0],
            )
            print(f"  {text!r}: {found['label']}; same: {same_label}; within {gap:.1e}")

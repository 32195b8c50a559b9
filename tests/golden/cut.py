"""Cuts the committed references from the full ones.

python tests/golden/cut.py FOLDER

FOLDER holds crammed_tiny.npz, hf_bert_tiny.npz and modernbert_tiny.npz, see README.md.
"""

import sys
from pathlib import Path

import numpy as np

# Variants whose weights are crammed's but for the norms: only what differs is kept.
VARIANTS = (
    "crammed",
    "sinusoidal_positions",
    "no_embedding_norm",
    "no_final_norm",
    "rms_norm",
    "norm_eps_1e-6",
    "two_heads",
    "dense_prediction",
)
ROWS = 16  # of a gradient or a final weight one row in so many is kept


def cut_crammed(full: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    kept = {"inputs": full["inputs"], "labels": full["labels"]}
    for key in full.files:
        variant, _, rest = key.partition("/")
        if variant not in (*VARIANTS, "trajectory"):
            continue
        array = full[key]
        if rest.startswith("params/"):
            base = f"crammed/{rest}"
            known = variant != "crammed" and base in full.files
            if known and np.array_equal(array, full[base]):
                continue
        elif rest == "hidden":
            array = array[:1]
        elif rest.startswith(("grad/", "final/")) and array.ndim == 2:
            array = array[::ROWS]
        kept[key] = array
    return kept


def cut_hugging_face(full: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    kept = {key: full[key] for key in full.files if key != "logits"}
    kept["hidden"] = kept["hidden"][:1]
    kept["grad_word_embedding"] = kept["grad_word_embedding"][::ROWS]
    return kept


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(__file__).parent
    for name, cut in (
        ("crammed_tiny", cut_crammed),
        ("hf_bert_tiny", cut_hugging_face),
        ("modernbert_tiny", cut_hugging_face),
    ):
        with np.load(source / f"{name}.npz") as full:
            np.savez_compressed(target / f"{name}.npz", **cut(full))

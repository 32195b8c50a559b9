"""Pretrain a BERT-like language model on one GPU within a day, in JAX.

>>> import cramjax
>>> model = cramjax.load("runs/quickstart")
>>> vectors_NxD = model.encode(["a first text", "a second one"])
>>> len(vectors_NxD)
2
"""

from typing import Any


def load(path: Any, weights: str = "pretrained", step: int | None = None) -> Any:
    """Returns the model of a workdir, see `cramjax.checkpoints.load`."""
    from cramjax.checkpoints.load import load as read  # imports JAX: takes a moment

    return read(path, weights, step)


def load_classifier(path: Any) -> Any:
    """Returns a fine-tuned classifier, see `cramjax.checkpoints.classifier`."""
    from cramjax.checkpoints.classifier import load as read

    return read(path)

"""Pretrain a BERT-like language model on one GPU within a day, in JAX."""

from typing import Any


def load(path: Any, weights: str = "pretrained", step: int | None = None) -> Any:
    """Returns the model of a workdir, see `cramjax.checkpoints.load`."""
    from cramjax.checkpoints.load import load as read  # imports JAX: takes a moment

    return read(path, weights, step)

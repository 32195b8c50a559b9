"""Pretrain a BERT-like language model on one GPU within a day, in JAX."""

from typing import Any


def load(path: Any) -> Any:
    """Returns the finished model of a workdir, see `cramjax.pretrained.load`."""
    from cramjax import pretrained  # imports JAX, which takes a moment

    return pretrained.load(path)

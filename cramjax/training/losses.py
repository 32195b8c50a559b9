"""The losses have moved to `model.fused`."""

from cramjax.model.fused import (  # noqa: F401  # moved
    cross_entropies,
    cross_entropy,
    squared_error,
)

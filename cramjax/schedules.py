"""Pure curves over progress, the used share of the budget in [0, 1].

Every function takes a Python or a traced number and returns a traced one.
"""

import jax
import jax.numpy as jnp


def triangle(progress: jax.Array, base: float, falloff: float) -> jax.Array:
    """Returns the one-cycle learning-rate factor of arXiv 2212.14034, section 4.3.

    Rises linearly from `base` to 1 at 1 - falloff, then falls linearly to 0 at 1. With
    base = falloff = 0.25 it is min(0.25 + p, 4 (1 - p)).
    """
    rise = base + (1 - base) / (1 - falloff) * progress
    return jnp.clip(jnp.minimum(rise, (1 - progress) / falloff), 0.0, 1.0)


def warmup_cosine(progress: jax.Array, warmup: float) -> jax.Array:
    """Returns the fine-tuning factor: linear from 0 to 1 at `warmup`, cosine to 0 at 1.

    GLUE protocol of arXiv 2212.14034, section 5.
    """
    falling = 0.5 * (1 + jnp.cos(jnp.pi * (progress - warmup) / (1 - warmup)))
    return jnp.where(progress < warmup, progress / max(warmup, 1e-9), falling)


def accumulation_steps(
    progress: jax.Array, micro_batch: int, batch_size: int, ramp_share: float
) -> jax.Array:
    """Returns k, the micro-batches per update (int32).

    The batch grows linearly to `batch_size` sequences over the first `ramp_share` of
    the budget, in whole micro-batches (arXiv 2212.14034, section 4.3), and is rounded
    up to whole micro-batches at its end.
    """
    last = -(-batch_size // micro_batch)
    if ramp_share == 0:
        return jnp.full(jnp.shape(progress), last, jnp.int32)
    grown = jnp.floor(progress * (batch_size / (ramp_share * micro_batch))) + 1
    return jnp.minimum(grown, last).astype(jnp.int32)

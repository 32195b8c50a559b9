"""The dynamic loss scale of float16, in pretraining and in fine-tuning.

It is halved at every overflow and doubled after GROWTH_STEPS steps without one
(Micikevicius et al., arXiv 1710.03740, section 3.2).
"""

import jax
import jax.numpy as jnp

START = 2.0**16
MIN = 1.0
GROWTH_STEPS = 2000


def is_used(dtype: str) -> bool:
    """Returns whether a model that computes in this type needs a loss scale."""
    return dtype == "float16"


def initial(dtype: str) -> jax.Array:
    """Returns the initial scale, 1 where none is needed."""
    return jnp.float32(START if is_used(dtype) else 1.0)


def following(
    dtype: str, scale: jax.Array, finite_steps: jax.Array, finite: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the next step's scale, and the number of steps since it last changed."""
    if not is_used(dtype):
        return scale, finite_steps
    steps = jnp.where(finite, finite_steps + 1, 0)
    grow = steps >= GROWTH_STEPS
    factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
    return jnp.maximum(scale * factor, MIN), jnp.where(grow, 0, steps)

"""How weights begin: five schemes, for three roles a dense kernel can have.

Roles: "plain" (query, key, and whatever is outside the layers), "branch" (value, and
the way into a feed-forward layer), "output" (what is added to the residual stream).
N is the number of layers a token passes, shared ones counted every time.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from cramjax.config import ModelConfig

ROLES = ("plain", "branch", "output")


def kernel(config: ModelConfig, role: str) -> jax.nn.initializers.Initializer:
    """Returns the initializer of a dense kernel.

    `config.init` is one of

    - "normal": std `init_std` everywhere (arXiv 1810.04805, appendix A.2);
    - "small": std sqrt(2 / (5 width)) everywhere (arXiv 1910.05895, section 2.2);
    - "megatron": std `init_std`, outputs divided by sqrt(2 N) (arXiv 1909.08053,
      section 4);
    - "wang": "small", outputs with std 2 / (N sqrt(width)) (as in GPT-J, arXiv
      2204.06745, section 2.1.3);
    - "deepnorm": Xavier normal, branches and outputs times (8 N)^-1/4 (arXiv
      2203.00555, table 1, encoder only). Its scaled residual is not part of it.

    Args:
      config: the model.
      role: one of `ROLES`.
    """
    layers = config.layers * config.repeats
    if config.init == "deepnorm":
        gain = 1.0 if role == "plain" else (8 * layers) ** -0.25
        return nn.initializers.variance_scaling(gain**2, "fan_avg", "normal")
    std = embedding_std(config)
    if role == "output" and config.init == "megatron":
        std /= math.sqrt(2 * layers)
    if role == "output" and config.init == "wang":
        std = 2 / (layers * math.sqrt(config.width))
    return nn.initializers.normal(std)


def embedding(config: ModelConfig) -> jax.nn.initializers.Initializer:
    """Returns the initializer of an embedding table."""
    return nn.initializers.normal(embedding_std(config))


def word_embedding(config: ModelConfig) -> jax.nn.initializers.Initializer:
    """Returns `embedding` with a zero row for <pad>, which is id 0."""

    def init(key, shape, dtype=jnp.float32):
        return embedding(config)(key, shape, dtype).at[0].set(0.0)

    return init


def embedding_std(config: ModelConfig) -> float:
    """Returns the standard deviation of an embedding's entries."""
    if config.init in ("small", "wang"):
        return math.sqrt(2 / (5 * config.width))
    return config.init_std

"""The two layers everything is built of: dense and norm; and the activations."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cramjax.config import ModelConfig
from cramjax.model import initializers
from cramjax.model.norms import LayerNorm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
    "relu_squared": lambda x: jnp.square(nn.relu(x)),  # arXiv 2109.08668
}


def dense(
    config: ModelConfig, features: int, *, bias: bool, role: str = "plain"
) -> nn.Dense:
    """Returns a dense layer; see `initializers` for its role."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=config.dtype,
        kernel_init=initializers.kernel(config, role),
    )


def norm(config: ModelConfig) -> nn.Module:
    """Returns the config's norm, with statistics in float32."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(epsilon=config.norm_eps, dtype=config.dtype)
    return LayerNorm(epsilon=config.norm_eps, dtype=config.dtype)


def drop(rate: float) -> nn.Dropout:
    """Returns dropout that is the identity, and needs no key, at rate 0."""
    return nn.Dropout(rate, deterministic=rate == 0)

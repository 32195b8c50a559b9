"""How a token's position enters: added to its word, rotating queries and keys, or both.

Axes as in `encoder`; E is the width of the embedding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config import ModelConfig
from cramjax.model import initializers

# The longest wavelength is this many times 2 pi positions (arXiv 1706.03762, section
# 3.5, and arXiv 2104.09864, section 3.2.2).
BASE = 10000.0


def sinusoids(length: int, width: int) -> np.ndarray:
    """Returns the table_LxE of Vaswani et al. (arXiv 1706.03762, section 3.5).

    Sines on the even channels, cosines on the odd ones.
    """
    angle_Lxhalf = _angles(length, width)
    table_LxE = np.empty((length, width), np.float32)
    table_LxE[:, 0::2] = np.sin(angle_Lxhalf)
    table_LxE[:, 1::2] = np.cos(angle_Lxhalf)
    return table_LxE


def _angles(length: int, width: int) -> np.ndarray:
    frequency_half = np.exp(-np.log(BASE) * np.arange(0, width, 2) / width)
    return np.arange(length)[:, None] * frequency_half[None]


class ScaledSinusoidal(nn.Module):
    """Sinusoids times one learned number, width^-0.5 at first."""

    config: ModelConfig

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        """Returns table_LxE."""
        width = self.config.embedding_dim
        scale_1 = self.param("scale", nn.initializers.constant(width**-0.5), (1,))
        return scale_1[:, None] * sinusoids(length, width)


class Sinusoidal(nn.Module):
    """Sinusoids as they are, nothing learned."""

    config: ModelConfig

    def __call__(self, length: int) -> jax.Array:
        """Returns table_LxE."""
        return jnp.asarray(sinusoids(length, self.config.embedding_dim))


class Learned(nn.Module):
    """A learned vector for each of `model.max_length` positions."""

    config: ModelConfig

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        """Returns table_LxE; raises ValueError beyond `model.max_length`."""
        shape = (self.config.max_length, self.config.embedding_dim)
        if length > shape[0]:
            raise ValueError(f"{length} tokens, but only {shape[0]} learned positions")
        return self.param("table", initializers.embedding(self.config), shape)[:length]


# By the names of `config.model.ADDED_POSITIONS`. Rotary positions are not added:
# `rotate` turns queries and keys in every layer.
ADDED = {
    "scaled_sinusoidal": ScaledSinusoidal,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
}


def rotate(x_BxLxHxK: jax.Array) -> jax.Array:
    """Returns queries or keys turned by their position (arXiv 2104.09864).

    Channel i of the first half and channel i of the second half are one plane.
    """
    angle_Lxhalf = _angles(x_BxLxHxK.shape[1], x_BxLxHxK.shape[3])
    cos_1xLx1xhalf = np.cos(angle_Lxhalf)[None, :, None, :].astype(np.float32)
    sin_1xLx1xhalf = np.sin(angle_Lxhalf)[None, :, None, :].astype(np.float32)
    a_BxLxHxhalf, b_BxLxHxhalf = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    turned_BxLxHxK = jnp.concatenate(
        [
            a_BxLxHxhalf * cos_1xLx1xhalf - b_BxLxHxhalf * sin_1xLx1xhalf,
            b_BxLxHxhalf * cos_1xLx1xhalf + a_BxLxHxhalf * sin_1xLx1xhalf,
        ],
        axis=-1,
    )
    return turned_BxLxHxK.astype(x_BxLxHxK.dtype)

"""What the model's keys choose: crammed-bert's values and the rows of Table 11.

Initialization, activations, norms, positions, and the two layers that crammed-bert does
without: a feed-forward layer without a gate, and Fourier mixing. Axes as in `encoder`.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config import ModelConfig
from cramjax.model.custom_vjp import LayerNorm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
    "relu_squared": lambda x: jnp.square(nn.relu(x)),  # arXiv 2109.08668
}

# The longest wavelength is this many times 2 pi positions (arXiv 1706.03762, section
# 3.5); that of rotary positions is `config.rotary_base`.
BASE = 10000.0


def kernel_init(config: ModelConfig, role: str) -> nn.initializers.Initializer:
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

    N is the number of layers that a token passes; a shared one counts every time.

    Args:
      config: the model.
      role: "branch" for value and the input of a feed-forward layer, "output" for what
        is added to the residual stream, "plain" for query, key and all else.
    """
    layers = config.layers * config.repeats
    if config.init == "deepnorm":
        gain = 1.0 if role == "plain" else (8 * layers) ** -0.25
        return nn.initializers.variance_scaling(gain**2, "fan_avg", "normal")
    std = _embedding_std(config)
    if role == "output" and config.init == "megatron":
        std /= math.sqrt(2 * layers)
    if role == "output" and config.init == "wang":
        std = 2 / (layers * math.sqrt(config.width))
    return nn.initializers.normal(std)


def embedding_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Returns the initializer of an embedding table."""
    return nn.initializers.normal(_embedding_std(config))


def _embedding_std(config: ModelConfig) -> float:
    if config.init in ("small", "wang"):
        return math.sqrt(2 / (5 * config.width))
    return config.init_std


def dense(
    config: ModelConfig, features: int, *, bias: bool, role: str = "plain"
) -> nn.Dense:
    """Returns a dense layer; see `kernel_init` for its role."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=config.dtype,
        kernel_init=kernel_init(config, role),
    )


def norm(config: ModelConfig) -> nn.Module:
    """Returns the config's norm, with statistics in float32."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(epsilon=config.norm_eps, dtype=config.dtype)
    return LayerNorm(epsilon=config.norm_eps, dtype=config.dtype)


def drop(rate: float) -> nn.Dropout:
    """Returns dropout that is the identity, and needs no key, at rate 0."""
    return nn.Dropout(rate, deterministic=rate == 0)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Returns the table_LxE of Vaswani et al. (arXiv 1706.03762, section 3.5).

    Sines on the even channels, cosines on the odd ones.
    """
    angle_Lxhalf = _angles(length, width, BASE)
    table_LxE = np.empty((length, width), np.float32)
    table_LxE[:, 0::2] = np.sin(angle_Lxhalf)
    table_LxE[:, 1::2] = np.cos(angle_Lxhalf)
    return table_LxE


def _angles(length: int, width: int, base: float) -> np.ndarray:
    frequency_half = np.exp(-np.log(base) * np.arange(0, width, 2) / width)
    return np.arange(length)[:, None] * frequency_half[None]


class ScaledSinusoidal(nn.Module):
    """Sinusoids times one learned number, initially width^-0.5."""

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
        return self.param("table", embedding_init(self.config), shape)[:length]


# Rotary positions are not added: `rotate` turns queries and keys in every layer.
ADDED_POSITIONS = {
    "scaled_sinusoidal": ScaledSinusoidal,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
}


def rotations(length: int, head_dim: int, base: float) -> np.ndarray:
    """Returns turns_LxK, the cosines and then the sines of `rotate`, float32."""
    angle_Lxhalf = _angles(length, head_dim, base)
    turns = [np.cos(angle_Lxhalf), np.sin(angle_Lxhalf)]
    return np.concatenate(turns, axis=1).astype(np.float32)


def rotate(
    x_BxLxHxK: jax.Array, turns_LxK: np.ndarray, positions_BxL: jax.Array | None = None
) -> jax.Array:
    """Returns queries or keys turned by their position (arXiv 2104.09864).

    Channel i of the first half and channel i of the second half are one plane. Without
    positions they are consecutive, from 0.
    """
    turns_BxLxK = turns_LxK[None]
    if positions_BxL is not None:
        turns_BxLxK = jnp.take(turns_LxK, positions_BxL, axis=0)
    half = turns_LxK.shape[1] // 2
    cos_BxLx1xhalf = turns_BxLxK[:, :, None, :half]
    sin_BxLx1xhalf = turns_BxLxK[:, :, None, half:]
    a_BxLxHxhalf, b_BxLxHxhalf = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    turned_BxLxHxK = jnp.concatenate(
        [
            a_BxLxHxhalf * cos_BxLx1xhalf - b_BxLxHxhalf * sin_BxLx1xhalf,
            b_BxLxHxhalf * cos_BxLx1xhalf + a_BxLxHxhalf * sin_BxLx1xhalf,
        ],
        axis=-1,
    )
    return turned_BxLxHxK.astype(x_BxLxHxK.dtype)


class PlainFeedForward(nn.Module):
    """Dense to ffn_width, activation, dense."""

    config: ModelConfig

    def setup(self):
        config = self.config
        bias = config.linear_bias
        self.value = dense(config, config.ffn_width, bias=bias, role="branch")
        self.output = dense(config, config.width, bias=bias, role="output")

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        """Returns x_NxD."""
        return self.output(ACTIVATIONS[self.config.activation](self.value(x_NxD)))


class FourierMixing(nn.Module):
    """Real part of the Fourier transform over positions and channels (FNet).

    As in arXiv 2105.03824, section 3.2, but scaled to keep the norm, and followed by
    the same output layer as attention.
    """

    config: ModelConfig
    dropout: float = 0.0  # unused: there are no probabilities to drop
    index: int = 0  # unused: all layers are the same

    def setup(self):
        config = self.config
        self.output = dense(
            config, config.width, bias=config.linear_bias, role="output"
        )

    def __call__(
        self,
        x_NxD: jax.Array,
        length: int,
        mask_Bx1xM: jax.Array | None,
        queries: None = None,
        order: None = None,
    ) -> jax.Array:
        """Returns x_NxD; only positions where the mask is 1 are transformed."""
        del queries, order  # the config has no sparse last layer with this mixing
        x_BxLxD = x_NxD.reshape(-1, length, self.config.width)
        x_BxLxD = jnp.fft.fft(x_BxLxD.astype(jnp.float32), axis=2, norm="ortho")
        if mask_Bx1xM is None:
            mixed_BxLxD = jnp.fft.fft(x_BxLxD, axis=1, norm="ortho").real
        else:
            mixed_BxLxD = self._over_valid_positions(x_BxLxD, mask_Bx1xM[:, 0])
        return self.output(mixed_BxLxD.reshape(x_NxD.shape))

    def _over_valid_positions(self, x_BxLxD, mask_BxM):
        """Multiplies by matrices: each row's transform has the length of its text."""
        valid_BxM = mask_BxM.astype(jnp.int32)
        index_BxM = jnp.cumsum(valid_BxM, axis=1) - 1
        count_Bx1x1 = valid_BxM.sum(axis=1)[:, None, None]
        product_BxLxM = index_BxM[:, :, None] * index_BxM[:, None, :]
        # Reduced before the division: integers are exact, large angles are not.
        angle_BxLxM = 2 * jnp.pi * (product_BxLxM % count_Bx1x1) / count_Bx1x1
        weight_Bx1xM = (valid_BxM[:, None, :] / jnp.sqrt(count_Bx1x1)).astype(
            jnp.float32
        )
        cos_BxLxM = jnp.cos(angle_BxLxM) * weight_Bx1xM
        sin_BxLxM = jnp.sin(angle_BxLxM) * weight_Bx1xM
        return jnp.einsum("BLM,BMD->BLD", cos_BxLxM, x_BxLxD.real) + jnp.einsum(
            "BLM,BMD->BLD", sin_BxLxM, x_BxLxD.imag
        )

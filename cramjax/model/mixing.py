"""What moves information between positions: attention, or a Fourier transform.

Axes as in `encoder`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cramjax.config import ModelConfig
from cramjax.model import positions
from cramjax.model.layers import dense, drop


class Attention(nn.Module):
    """Multi-head self-attention over all positions."""

    config: ModelConfig
    dropout: float = 0.0

    def setup(self):
        config = self.config
        bias = config.qkv_bias
        self.query = dense(config, config.width, bias=bias)
        self.key = dense(config, config.width, bias=bias)
        self.value = dense(config, config.width, bias=bias, role="branch")
        self.output = dense(
            config, config.width, bias=config.linear_bias, role="output"
        )
        self.drop = drop(self.dropout)

    def __call__(
        self, x_NxD: jax.Array, length: int, mask_BxLxM: jax.Array | None
    ) -> jax.Array:
        """Returns x_NxD; the mask is 1 where L may attend to M; its L may be 1."""
        shape = (-1, length, self.config.heads, self.config.head_dim)
        q_BxLxHxK = self.query(x_NxD).reshape(shape)
        k_BxMxHxK = self.key(x_NxD).reshape(shape)
        v_BxMxHxK = self.value(x_NxD).reshape(shape)
        if self.config.rotary:
            q_BxLxHxK = positions.rotate(q_BxLxHxK)
            k_BxMxHxK = positions.rotate(k_BxMxHxK)
        if self.config.attention == "cudnn" and mask_BxLxM is None and not self.dropout:
            mixed_BxLxHxK = jax.nn.dot_product_attention(
                q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, implementation="cudnn"
            )
        else:
            mixed_BxLxHxK = self._attend(q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, mask_BxLxM)
        return self.output(mixed_BxLxHxK.reshape(x_NxD.shape))

    def _attend(self, q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, mask_BxLxM):
        scores_BxHxLxM = jnp.einsum("BLHK,BMHK->BHLM", q_BxLxHxK, k_BxMxHxK)
        scores_BxHxLxM = scores_BxHxLxM.astype(jnp.float32) * self.config.head_dim**-0.5
        if mask_BxLxM is not None:
            # The original adds -10000; in float32 the result is the same exact zero.
            mask_Bx1xLxM = mask_BxLxM.astype(bool)[:, None]
            scores_BxHxLxM = jnp.where(mask_Bx1xLxM, scores_BxHxLxM, -10000.0)
        probs_BxHxLxM = self.drop(jax.nn.softmax(scores_BxHxLxM, axis=-1))
        return jnp.einsum(
            "BHLM,BMHK->BLHK", probs_BxHxLxM.astype(v_BxMxHxK.dtype), v_BxMxHxK
        )


class FourierMixing(nn.Module):
    """Real part of the Fourier transform over positions and channels (FNet).

    As in arXiv 2105.03824, section 3.2, but scaled to keep the norm, and followed by
    the same output layer as attention.
    """

    config: ModelConfig
    dropout: float = 0.0  # has nothing to drop: there are no probabilities

    def setup(self):
        self.output = dense(
            self.config,
            self.config.width,
            bias=self.config.linear_bias,
            role="output",
        )

    def __call__(
        self, x_NxD: jax.Array, length: int, mask_Bx1xM: jax.Array | None
    ) -> jax.Array:
        """Returns x_NxD; only positions where the mask is 1 are transformed."""
        x_BxLxD = x_NxD.reshape(-1, length, self.config.width)
        x_BxLxD = jnp.fft.fft(x_BxLxD.astype(jnp.float32), axis=2, norm="ortho")
        if mask_Bx1xM is None:
            mixed_BxLxD = jnp.fft.fft(x_BxLxD, axis=1, norm="ortho").real
        else:
            mixed_BxLxD = self._over_valid_positions(x_BxLxD, mask_Bx1xM[:, 0])
        return self.output(mixed_BxLxD.reshape(x_NxD.shape))

    def _over_valid_positions(self, x_BxLxD, mask_BxM):
        """By matrices: every row's transform has the length of its own text."""
        valid_BxM = mask_BxM.astype(jnp.int32)
        index_BxM = jnp.cumsum(valid_BxM, axis=1) - 1
        count_Bx1x1 = valid_BxM.sum(axis=1)[:, None, None]
        product_BxLxM = index_BxM[:, :, None] * index_BxM[:, None, :]
        # Reduced before it is divided: whole numbers are exact, large angles are not.
        angle_BxLxM = 2 * jnp.pi * (product_BxLxM % count_Bx1x1) / count_Bx1x1
        weight_Bx1xM = (valid_BxM[:, None, :] / jnp.sqrt(count_Bx1x1)).astype(
            jnp.float32
        )
        cos_BxLxM, sin_BxLxM = (
            f(angle_BxLxM) * weight_Bx1xM for f in (jnp.cos, jnp.sin)
        )
        return jnp.einsum("BLM,BMD->BLD", cos_BxLxM, x_BxLxD.real) + jnp.einsum(
            "BLM,BMD->BLD", sin_BxLxM, x_BxLxD.imag
        )


MIXING = {"attention": Attention, "fourier": FourierMixing}

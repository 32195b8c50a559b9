"""The encoder crammed-bert and its two heads (arXiv 2212.14034, section 4.2).

Axes, one capital letter each, as suffixes of array names and in einsum strings:
    B batch        L query position   M key position   D width       H heads
    K head dim     F half of ffn_width                 V vocabulary  P predicted
    C classes

Parameters and LayerNorm statistics are float32; everything else computes in
`config.dtype`, except the softmax over keys and the logits, which are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cramjax.schema import ModelConfig


def sinusoids(length: int, width: int) -> np.ndarray:
    """Returns the table_LxD of Vaswani et al. (arXiv 1706.03762, 3.5), base 10000.

    Sines on the even channels, cosines on the odd ones.
    """
    position_Lx1 = np.arange(length)[:, None]
    frequency_1xhalf = np.exp(-np.log(10000.0) * np.arange(0, width, 2) / width)[None]
    angle_Lxhalf = position_Lx1 * frequency_1xhalf
    table_LxD = np.empty((length, width), np.float32)
    table_LxD[:, 0::2] = np.sin(angle_Lxhalf)
    table_LxD[:, 1::2] = np.cos(angle_Lxhalf)
    return table_LxD


def _word_init(std: float):
    """Normal with a zero row for <pad>, which is id 0."""

    def init(key, shape, dtype=jnp.float32):
        return (std * jax.random.normal(key, shape, dtype)).at[0].set(0.0)

    return init


def _dense(config: ModelConfig, features: int) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        kernel_init=nn.initializers.normal(config.init_std),
    )


def _norm(config: ModelConfig) -> nn.LayerNorm:
    # The variance is taken about the mean: the fast form loses digits in float32.
    return nn.LayerNorm(
        epsilon=config.norm_eps, dtype=config.dtype, use_fast_variance=False
    )


class Embedding(nn.Module):
    """Words plus scaled sinusoidal positions, LayerNorm, dropout."""

    config: ModelConfig
    dropout: float = 0.0

    def setup(self):
        config = self.config
        self.word = self.param(
            "word", _word_init(config.init_std), (config.vocab_size, config.width)
        )
        self.position_scale = self.param(
            "position_scale", nn.initializers.constant(config.width**-0.5), (1,)
        )
        self.norm = _norm(config)
        self.drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """Returns x_BxLxD for integer tokens."""
        word_BxLxD = jnp.take(self.word, tokens_BxL.astype(jnp.int32), axis=0)
        table_LxD = sinusoids(tokens_BxL.shape[1], self.config.width)
        position_1xLxD = self.position_scale.reshape(1, 1, 1) * table_LxD[None]
        return self.drop(self.norm(word_BxLxD + position_1xLxD))

    def logits(self, hidden_BxPxD: jax.Array) -> jax.Array:
        """Returns float32 logits_BxPxV: the decoder is tied to the word embedding."""
        dtype = self.config.dtype
        return jnp.einsum(
            "BPD,VD->BPV", hidden_BxPxD.astype(dtype), self.word.astype(dtype)
        ).astype(jnp.float32)


class Attention(nn.Module):
    """Multi-head self-attention over all positions, no biases."""

    config: ModelConfig
    dropout: float = 0.0

    def setup(self):
        for name in ("query", "key", "value", "output"):
            setattr(self, name, _dense(self.config, self.config.width))
        self.drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)

    def __call__(self, x_BxLxD: jax.Array, mask_BxM: jax.Array | None) -> jax.Array:
        """Returns x_BxLxD; mask_BxM is 1 where a key may be attended to, else 0."""
        shape = (*x_BxLxD.shape[:2], self.config.heads, self.config.head_dim)
        q_BxLxHxK = self.query(x_BxLxD).reshape(shape)
        k_BxMxHxK = self.key(x_BxLxD).reshape(shape)
        v_BxMxHxK = self.value(x_BxLxD).reshape(shape)
        if self.config.attention == "cudnn" and mask_BxM is None and not self.dropout:
            mixed_BxLxHxK = jax.nn.dot_product_attention(
                q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, implementation="cudnn"
            )
        else:
            mixed_BxLxHxK = self._attend(q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, mask_BxM)
        return self.output(mixed_BxLxHxK.reshape(x_BxLxD.shape))

    def _attend(self, q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, mask_BxM):
        scores_BxHxLxM = jnp.einsum("BLHK,BMHK->BHLM", q_BxLxHxK, k_BxMxHxK)
        scores_BxHxLxM = scores_BxHxLxM.astype(jnp.float32) * self.config.head_dim**-0.5
        if mask_BxM is not None:
            # The original adds -10000; in float32 the result is the same exact zero.
            mask_Bx1x1xM = mask_BxM.astype(bool)[:, None, None, :]
            scores_BxHxLxM = jnp.where(mask_Bx1x1xM, scores_BxHxLxM, -10000.0)
        probs_BxHxLxM = self.drop(jax.nn.softmax(scores_BxHxLxM, axis=-1))
        return jnp.einsum(
            "BHLM,BMHK->BLHK", probs_BxHxLxM.astype(v_BxMxHxK.dtype), v_BxMxHxK
        )


class GatedFeedForward(nn.Module):
    """GELU-gated linear unit (arXiv 2002.05202), exact erf GELU, no biases."""

    config: ModelConfig

    def setup(self):
        self.gate = _dense(self.config, self.config.ffn_width // 2)
        self.value = _dense(self.config, self.config.ffn_width // 2)
        self.output = _dense(self.config, self.config.width)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Returns x_BxLxD."""
        gate_BxLxF = nn.gelu(self.gate(x_BxLxD), approximate=False)
        return self.output(gate_BxLxF * self.value(x_BxLxD))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    config: ModelConfig
    dropout: float = 0.0

    def setup(self):
        self.attention_norm = _norm(self.config)
        self.attention = Attention(self.config, self.dropout)
        self.ffn_norm = _norm(self.config)
        self.ffn = GatedFeedForward(self.config)
        self.drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)

    def __call__(self, x_BxLxD: jax.Array, mask_BxM: jax.Array | None) -> jax.Array:
        """Returns x_BxLxD."""
        x_BxLxD += self.drop(self.attention(self.attention_norm(x_BxLxD), mask_BxM))
        return x_BxLxD + self.drop(self.ffn(self.ffn_norm(x_BxLxD)))


class Encoder(nn.Module):
    """Tokens to hidden states.

    `Encoder(config).apply({"params": params}, tokens_BxL)` also takes the parameters of
    the two models below, which only add a head to this one's tree.

    Attributes:
      config: the shape.
      dropout: rate on the embedding, attention probabilities and both residuals; above
        0 `apply` needs `rngs={"dropout": key}`.
    """

    config: ModelConfig
    dropout: float = 0.0

    def setup(self):
        self.embedding = Embedding(self.config, self.dropout)
        self.layers = [
            Block(self.config, self.dropout) for _ in range(self.config.layers)
        ]
        self.final_norm = _norm(self.config)

    def __call__(
        self, tokens_BxL: jax.Array, attention_mask_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Returns hidden_BxLxD; the mask is 1 for tokens, 0 for padding."""
        return self.encode(tokens_BxL, attention_mask_BxL)

    def encode(self, tokens_BxL, attention_mask_BxL=None) -> jax.Array:
        """Returns hidden_BxLxD, for subclasses whose `__call__` goes on to a head."""
        x_BxLxD = self.embedding(tokens_BxL)
        for layer in self.layers:
            x_BxLxD = layer(x_BxLxD, attention_mask_BxL)
        return self.final_norm(x_BxLxD)


class MaskedLM(Encoder):
    """Tokens to logits at the predicted positions only (the sparse head)."""

    def __call__(self, tokens_BxL: jax.Array, positions_BxP: jax.Array) -> jax.Array:
        """Returns float32 logits_BxPxV."""
        hidden_BxLxD = self.encode(tokens_BxL)
        picked_BxPxD = jnp.take_along_axis(hidden_BxLxD, positions_BxP[..., None], 1)
        return self.embedding.logits(picked_BxPxD)


class Classifier(Encoder):
    """Tokens to class logits: position 0, dense, tanh, dropout, dense (P 5)."""

    classes: int = 2
    head_width: int = 1024

    def setup(self):
        super().setup()
        init = nn.initializers.normal(self.config.init_std)
        self.pooler = nn.Dense(
            self.head_width, dtype=self.config.dtype, kernel_init=init
        )
        self.head = nn.Dense(self.classes, dtype=jnp.float32, kernel_init=init)
        self.drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)

    def __call__(
        self, tokens_BxL: jax.Array, attention_mask_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits_BxC."""
        first_BxD = self.encode(tokens_BxL, attention_mask_BxL)[:, 0]
        return self.head(self.drop(jnp.tanh(self.pooler(first_BxD))))

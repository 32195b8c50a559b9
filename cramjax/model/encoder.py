"""The encoder crammed-bert, its variants, and its two heads.

Read with the defaults of `config.ModelConfig` it is crammed-bert (arXiv 2212.14034,
section 4.2); the other values of a key are the rows of the paper's Table 11, one small
class or table entry each, here or in `mixing`, `positions`, `layers`, `initializers`.

Axes, one capital letter each, as suffixes of array names and in einsum strings:
    B batch        L query position   M key position   D width       H heads
    K head dim     F feed-forward     V vocabulary     P predicted   C classes
    E embedding width, D unless it is factorised       N rows, B L of them

Parameters and norm statistics are float32; everything else computes in `config.dtype`,
except the softmax over keys and the logits, which are float32.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from cramjax.config import ModelConfig
from cramjax.model import initializers
from cramjax.model.layers import ACTIVATIONS, dense, drop, norm
from cramjax.model.mixing import MIXING
from cramjax.model.positions import ADDED
from cramjax.tokens import PAD, SEP


def on_any_device(config: ModelConfig) -> ModelConfig:
    """Returns the same model, with the attention that every device has.

    Attention itself has no parameters, so that they, and their shapes, are the same. A
    model that was trained with cuDNN's attention is read and used elsewhere like this.
    """
    return dataclasses.replace(config, attention="xla")


class Embedding(nn.Module):
    """Words plus positions, norm, dropout; and the same words as the decoder."""

    config: ModelConfig
    dropout: float = 0.0

    def setup(self):
        config = self.config
        self.word = self.param(
            "word",
            initializers.word_embedding(config),
            (config.vocab_size, config.embedding_dim),
        )
        if config.added_positions:
            self.positions = ADDED[config.added_positions](config)
        if config.token_types:
            self.token_type = self.param(
                "token_type",
                initializers.embedding(config),
                (config.token_types, config.embedding_dim),
            )
        if config.embedding_norm:
            self.norm = norm(config)
        if config.embedding_dim != config.width:
            self.projection = dense(config, config.width, bias=config.linear_bias)
        self.drop = drop(self.dropout)

    def __call__(
        self, tokens_BxL: jax.Array, token_types_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Returns x_BxLxD for integer tokens; token types are 0 unless given."""
        config = self.config
        x_BxLxE = jnp.take(self.word, tokens_BxL.astype(jnp.int32), axis=0)
        # As everywhere else, <pad> learns as an answer, not where it is read.
        pad_BxLx1 = (tokens_BxL == PAD)[..., None]
        x_BxLxE = jnp.where(pad_BxLx1, jax.lax.stop_gradient(x_BxLxE), x_BxLxE)
        if config.added_positions:
            x_BxLxE += self.positions(tokens_BxL.shape[1])[None]
        if config.token_types:
            types_BxL = jnp.zeros_like(tokens_BxL, jnp.int32)
            if token_types_BxL is not None:
                types_BxL = token_types_BxL.astype(jnp.int32)
            x_BxLxE += jnp.take(self.token_type, types_BxL, axis=0)
        x_BxLxE = self.norm(x_BxLxE) if config.embedding_norm else x_BxLxE
        x_BxLxE = self.drop(x_BxLxE.astype(config.dtype))
        return (
            self.projection(x_BxLxE)
            if config.embedding_dim != config.width
            else x_BxLxE
        )

    def logits(self, hidden_BxPxE: jax.Array) -> jax.Array:
        """Returns float32 logits_BxPxV: the decoder is tied to the word embedding."""
        dtype = self.config.dtype
        return jnp.einsum(
            "BPE,VE->BPV", hidden_BxPxE.astype(dtype), self.word.astype(dtype)
        ).astype(jnp.float32)


class GatedFeedForward(nn.Module):
    """Gated linear unit (arXiv 2002.05202); gate and value are ffn_width / 2 wide."""

    config: ModelConfig

    def setup(self):
        config = self.config
        bias, half = config.linear_bias, config.ffn_width // 2
        self.gate = dense(config, half, bias=bias, role="branch")
        self.value = dense(config, half, bias=bias, role="branch")
        self.output = dense(config, config.width, bias=bias, role="output")

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        """Returns x_NxD."""
        activation = ACTIVATIONS[self.config.activation]
        # Backward computes the activation again: to read it back is more traffic.
        gated = jax.checkpoint(lambda gate, value: activation(gate) * value)
        return self.output(gated(self.gate(x_NxD), self.value(x_NxD)))


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


class PreNormBlock(nn.Module):
    """Norm, attention, residual; norm, feed-forward, residual.

    Attributes:
      config: the shape.
      dropout: rate, see `Encoder`.
      index: of the layer, from 0.
    """

    config: ModelConfig
    dropout: float = 0.0
    index: int = 0

    def setup(self):
        config = self.config
        if self.index or config.first_norm:
            self.attention_norm = norm(config)
        self.attention = MIXING[config.mixing](config, self.dropout)
        if config.has_ffn(self.index):
            self.ffn_norm = norm(config)
            self.ffn = FEED_FORWARD[config.ffn](config)
        self.drop = drop(self.dropout)

    def __call__(
        self, x_NxD: jax.Array, length: int, mask_BxLxM: jax.Array | None
    ) -> jax.Array:
        """Returns x_NxD, N = B L."""
        first = not (self.index or self.config.first_norm)
        normed_NxD = x_NxD if first else self.attention_norm(x_NxD)
        x_NxD += self.drop(self.attention(normed_NxD, length, mask_BxLxM))
        if self.config.has_ffn(self.index):
            x_NxD += self.drop(self.ffn(self.ffn_norm(x_NxD)))
        return x_NxD


class PostNormBlock(PreNormBlock):
    """Attention, residual, norm; feed-forward, residual, norm (arXiv 1706.03762)."""

    def __call__(
        self, x_NxD: jax.Array, length: int, mask_BxLxM: jax.Array | None
    ) -> jax.Array:
        """Returns x_NxD, N = B L."""
        mixed_NxD = self.attention(x_NxD, length, mask_BxLxM)
        x_NxD = self.attention_norm(x_NxD + self.drop(mixed_NxD))
        if self.config.has_ffn(self.index):
            x_NxD = self.ffn_norm(x_NxD + self.drop(self.ffn(x_NxD)))
        return x_NxD


FEED_FORWARD = {"gated": GatedFeedForward, "plain": PlainFeedForward}
BLOCK = {"pre": PreNormBlock, "post": PostNormBlock}


def document_mask(tokens_BxL: jax.Array) -> jax.Array:
    """Returns mask_BxLxM: 1 within a document of a packed block, whose end is <sep>."""
    ends_BxL = (tokens_BxL == SEP).astype(jnp.int32)
    document_BxL = jnp.cumsum(ends_BxL, axis=1) - ends_BxL
    return document_BxL[:, :, None] == document_BxL[:, None, :]


def second_segment(tokens_BxL: jax.Array) -> jax.Array:
    """Returns types_BxL: 1 from the last text of `<cls> A <sep> B <sep>` on, else 0.

    A may hold further `<sep>`; a row with one `<sep>` has no second segment.
    """
    ends_BxL = (tokens_BxL == SEP).astype(jnp.int32)
    before_BxL = jnp.cumsum(ends_BxL, axis=1) - ends_BxL
    first_of_b_Bx1 = jnp.maximum(ends_BxL.sum(axis=1, keepdims=True) - 1, 1)
    return (before_BxL >= first_of_b_Bx1).astype(jnp.int32)


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
        config = self.config
        self.embedding = Embedding(config, self.dropout)
        self.layers = [
            BLOCK[config.norm_placement](config, self.dropout, index)
            for index in range(config.layers)
        ]
        if config.final_norm:
            self.final_norm = norm(config)

    def __call__(
        self,
        tokens_BxL: jax.Array,
        attention_mask_BxL: jax.Array | None = None,
        token_types_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """Returns hidden_BxLxD.

        Args:
          tokens_BxL: any integer dtype.
          attention_mask_BxL: 1 for tokens, 0 for padding; or a mask_BxLxM, 1 where L
            may attend to M, see `document_mask`.
          token_types_BxL: 0 or 1, if the config has token types.
        """
        return self.encode(tokens_BxL, attention_mask_BxL, token_types_BxL)

    def encode(
        self, tokens_BxL, attention_mask_BxL=None, token_types_BxL=None
    ) -> jax.Array:
        """Returns hidden_BxLxD, for subclasses whose `__call__` goes on to a head."""
        x_BxLxD = self.embedding(tokens_BxL, token_types_BxL)
        mask_BxLxM = attention_mask_BxL
        if mask_BxLxM is not None and mask_BxLxM.ndim == 2:
            mask_BxLxM = attention_mask_BxL[:, None]
        # Two axes, and a barrier before the first layer: only then does XLA on a GPU
        # add the residual in the matrix product before it.
        x_NxD = jax.lax.optimization_barrier(x_BxLxD.reshape(-1, self.config.width))
        for layer in self.layers * self.config.repeats:
            x_NxD = layer(x_NxD, x_BxLxD.shape[1], mask_BxLxM)
        x_NxD = self.final_norm(x_NxD) if self.config.final_norm else x_NxD
        return x_NxD.reshape(x_BxLxD.shape)


class MaskedLM(Encoder):
    """Tokens to logits at the predicted positions."""

    def setup(self):
        super().setup()
        config = self.config
        if config.head_transform:
            self.transform = HeadTransform(config)
        elif config.embedding_dim != config.width:
            self.output_projection = dense(
                config, config.embedding_dim, bias=config.linear_bias
            )
        if config.decoder_bias:
            self.decoder_bias = self.param(
                "decoder_bias", nn.initializers.zeros, (config.vocab_size,)
            )

    def __call__(
        self,
        tokens_BxL: jax.Array,
        positions_BxP: jax.Array,
        attention_mask_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """Returns float32 logits_BxPxV."""
        hidden_BxLxD = self.encode(tokens_BxL, attention_mask_BxL)
        if not self.config.sparse_prediction:
            return _pick(self.logits(hidden_BxLxD), positions_BxP)
        return self.logits(_pick(hidden_BxLxD, positions_BxP))

    def logits(self, hidden_BxPxD: jax.Array) -> jax.Array:
        """Returns float32 logits_BxPxV of hidden states."""
        config = self.config
        if config.head_transform:
            hidden_BxPxE = self.transform(hidden_BxPxD)
        elif config.embedding_dim != config.width:
            hidden_BxPxE = self.output_projection(hidden_BxPxD)
        else:
            hidden_BxPxE = hidden_BxPxD
        logits_BxPxV = self.embedding.logits(hidden_BxPxE)
        if config.decoder_bias:
            logits_BxPxV += self.decoder_bias[None, None]
        return logits_BxPxV


def _pick(x_BxLxX: jax.Array, positions_BxP: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BxLxX, positions_BxP[..., None], 1)


class HeadTransform(nn.Module):
    """Dense, activation, norm before the decoder (arXiv 1810.04805)."""

    config: ModelConfig

    def setup(self):
        config = self.config
        self.dense = dense(config, config.embedding_dim, bias=config.linear_bias)
        self.norm = norm(config)

    def __call__(self, hidden_BxPxD: jax.Array) -> jax.Array:
        """Returns hidden_BxPxE."""
        return self.norm(ACTIVATIONS[self.config.activation](self.dense(hidden_BxPxD)))


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
        self.drop = drop(self.dropout)

    def __call__(
        self, tokens_BxL: jax.Array, attention_mask_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits_BxC."""
        types_BxL = second_segment(tokens_BxL) if self.config.token_types > 1 else None
        hidden_BxLxD = self.encode(tokens_BxL, attention_mask_BxL, types_BxL)
        first_BxD = hidden_BxLxD[:, 0]
        return self.head(self.drop(jnp.tanh(self.pooler(first_BxD))))

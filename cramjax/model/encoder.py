"""The encoder crammed-bert (arXiv 2212.14034, section 4.2) and its two heads.

This file reads top to bottom with the defaults of `config.ModelConfig`. Initializers,
norms and positions, both defaults and the rows of Table 11, are in `layers`; which
positions are computed and seen is in `rows`.

Axes, one capital letter each, as suffixes of array names and in einsum strings:
    B batch        L query position   M key position   D width       H heads
    K head dim     F feed-forward     V vocabulary     P predicted   C classes
    E embedding width, D unless it is factorized       N rows, B L of them

Parameters and norm statistics are float32. Matrix products compute in `config.dtype`;
attention scores and logits are converted to float32 before the softmax and the loss.
LayerNorm is in `custom_vjp`; RMSNorm is Flax's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config import ModelConfig
from cramjax.model.layers import (
    ACTIVATIONS,
    ADDED_POSITIONS,
    FourierMixing,
    PlainFeedForward,
    dense,
    drop,
    embedding_init,
    norm,
    rotate,
    rotations,
)
from cramjax.model.rows import needed_last, reordered, rows_at, second_segment
from cramjax.tokens import PAD


class Embedding(nn.Module):
    """Token embedding plus positions, norm, dropout; and the decoder tied to it."""

    config: ModelConfig
    dropout: float = 0.0

    def setup(self):
        config = self.config

        def without_pad(key, shape):
            return embedding_init(config)(key, shape).at[PAD].set(0.0)

        width = config.embedding_dim
        self.word = self.param("word", without_pad, (config.vocab_size, width))
        if config.added_positions:
            self.positions = ADDED_POSITIONS[config.added_positions](config)
        if config.token_types:
            shape = (config.token_types, width)
            self.token_type = self.param("token_type", embedding_init(config), shape)
        if config.embedding_norm:
            self.norm = norm(config)
        if width != config.width:
            self.projection = dense(config, config.width, bias=config.linear_bias)
        self.drop = drop(self.dropout)

    def __call__(
        self, tokens_BxL: jax.Array, token_types_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Returns x_BxLxD for integer tokens; token types are 0 unless given."""
        config = self.config
        x_BxLxE = jnp.take(self.word, tokens_BxL.astype(jnp.int32), axis=0)
        # Like PyTorch's padding_idx: no gradient through the input lookup of <pad>.
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
        if config.embedding_dim == config.width:
            return x_BxLxE
        return self.projection(x_BxLxE)

    def logits(self, hidden_BxPxE: jax.Array) -> jax.Array:
        """Returns float32 logits_BxPxV."""
        dtype = self.config.dtype
        return jnp.einsum(
            "BPE,VE->BPV", hidden_BxPxE.astype(dtype), self.word.astype(dtype)
        ).astype(jnp.float32)


class Attention(nn.Module):
    """Multi-head self-attention over all positions, or in some layers those nearby."""

    config: ModelConfig
    dropout: float = 0.0
    index: int = 0

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
        self,
        x_NxD: jax.Array,
        length: int,
        mask_BxLxM: jax.Array | None,
        queries_BxP: jax.Array | None = None,
        order_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """Returns x_NxD, or only the rows of the queries if they are given.

        The mask is 1 where L may attend to M, or is Bx1xM. The order has the rows'
        positions in the text, of which x may be the beginning; without it they are
        consecutive.
        """
        heads = (self.config.heads, self.config.head_dim)
        x_QxD, queries = rows_at(x_NxD, length, queries_BxP), length
        if queries_BxP is not None:
            queries = queries_BxP.shape[1]
        q_BxLxHxK = self.query(x_QxD).reshape(-1, queries, *heads)
        k_BxMxHxK = self.key(x_NxD).reshape(-1, length, *heads)
        v_BxMxHxK = self.value(x_NxD).reshape(-1, length, *heads)
        window, base = self.config.reach(self.index)
        whole, place_BxM, place_BxQ = length, None, queries_BxP
        if order_BxL is not None:
            whole, place_BxM = order_BxL.shape[1], order_BxL[:, :length]
            place_BxQ = place_BxM
            if queries_BxP is not None:
                place_BxQ = jnp.take_along_axis(place_BxM, queries_BxP, axis=1)
        if self.config.rotary:
            turns_LxK = rotations(whole, self.config.head_dim, base)
            q_BxLxHxK = rotate(q_BxLxHxK, turns_LxK, place_BxQ)
            k_BxMxHxK = rotate(k_BxMxHxK, turns_LxK, place_BxM)
        if window:
            if place_BxM is None:
                place_BxM = np.arange(length)[None]
            near_BxLxM = abs(place_BxM[:, :, None] - place_BxM[:, None]) <= window
            given = mask_BxLxM is not None
            mask_BxLxM = mask_BxLxM.astype(bool) & near_BxLxM if given else near_BxLxM
        plain = mask_BxLxM is None and queries_BxP is None and not self.dropout
        even = length % 2 == 0  # late masks may leave an odd number in validation
        if queries_BxP is not None and mask_BxLxM is not None:
            shape = (len(queries_BxP), *mask_BxLxM.shape[1:])
            mask_BxLxM = jnp.broadcast_to(mask_BxLxM, shape)
            if shape[1] > 1:
                rows_BxPx1 = queries_BxP[..., None]
                mask_BxLxM = jnp.take_along_axis(mask_BxLxM, rows_BxPx1, axis=1)
        if self.config.attention == "cudnn" and plain and even:
            mixed_BxLxHxK = jax.nn.dot_product_attention(
                q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, implementation="cudnn"
            )
        else:
            mixed_BxLxHxK = self._attend(q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, mask_BxLxM)
        return self.output(mixed_BxLxHxK.reshape(x_QxD.shape))

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
        # Recomputed in the backward pass: cheaper than reading it back.
        gated = jax.checkpoint(lambda gate, value: activation(gate) * value)
        return self.output(gated(self.gate(x_NxD), self.value(x_NxD)))


MIXING = {"attention": Attention, "fourier": FourierMixing}
FEED_FORWARD = {"gated": GatedFeedForward, "plain": PlainFeedForward}


class Block(nn.Module):
    """Attention and feed-forward, each with a norm and a residual connection.

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
        normed = self.index or config.first_norm
        self.attention_norm = norm(config) if normed else lambda x_NxD: x_NxD
        self.attention = MIXING[config.mixing](config, self.dropout, self.index)
        if config.has_ffn(self.index):
            self.ffn_norm = norm(config)
            self.ffn = FEED_FORWARD[config.ffn](config)
        self.drop = drop(self.dropout)

    def __call__(
        self,
        x_NxD: jax.Array,
        length: int,
        mask_BxLxM: jax.Array | None,
        queries_BxP: jax.Array | None = None,
        order_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """Returns x_NxD, N = B L; only the rows of the queries if they are given."""

        def attention(x_NxD):
            return self.attention(x_NxD, length, mask_BxLxM, queries_BxP, order_BxL)

        stream_NxD = rows_at(x_NxD, length, queries_BxP)
        x_NxD = self._add(stream_NxD, x_NxD, attention, self.attention_norm)
        if self.config.has_ffn(self.index):
            x_NxD = self._add(x_NxD, x_NxD, self.ffn, self.ffn_norm)
        return x_NxD

    def _add(
        self, stream_NxD: jax.Array, x_NxD: jax.Array, part: Callable, norm: Callable
    ) -> jax.Array:
        """Adds what the part makes of x to the stream."""
        if self.config.norm_placement == "post":  # arXiv 1706.03762
            return norm(stream_NxD + self.drop(part(x_NxD)))
        return stream_NxD + self.drop(part(norm(x_NxD)))


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
        self.layers = [Block(config, self.dropout, i) for i in range(config.layers)]
        if config.final_norm:
            self.final_norm = norm(config)

    def __call__(
        self,
        tokens_BxL: jax.Array,
        attention_mask: jax.Array | None = None,
        token_types_BxL: jax.Array | None = None,
        needed_BxP: jax.Array | None = None,
    ) -> jax.Array:
        """Returns hidden_BxLxD, or hidden_BxPxD at the needed positions.

        Args:
          tokens_BxL: any integer dtype.
          attention_mask: mask_BxL, 1 for tokens, 0 for padding; or mask_BxLxM, 1 where
            L may attend to M, see `document_mask`.
          token_types_BxL: 0 or 1, if the config has token types.
          needed_BxP: positions; the last layer computes nothing at others, and the
            first `config.late_masks` layers compute nothing at these.
        """
        x_BxLxD = self.embedding(tokens_BxL, token_types_BxL)
        mask_BxLxM = attention_mask
        if attention_mask is not None and attention_mask.ndim == 2:
            mask_BxLxM = attention_mask[:, None]
        # Two axes and a barrier let XLA:GPU fuse a residual add into the matmul before.
        x_NxD = jax.lax.optimization_barrier(x_BxLxD.reshape(-1, self.config.width))
        rows, length, width = x_BxLxD.shape
        *layers, last = self.layers * self.config.repeats
        order_BxL = None
        if needed_BxP is not None and (late := self.config.late_masks):
            order_BxL = needed_last(needed_BxP, length)
            x_NxD = rows_at(x_NxD, length, order_BxL)
            mask_BxLxM = reordered(mask_BxLxM, order_BxL)
            kept = length - needed_BxP.shape[1]
            needed_BxP = jnp.broadcast_to(jnp.arange(kept, length), needed_BxP.shape)
            early, layers = layers[:late], layers[late:]
            x_NxD = self._without_last(x_NxD, kept, mask_BxLxM, order_BxL, early)
        for layer in layers:
            x_NxD = layer(x_NxD, length, mask_BxLxM, order_BxL=order_BxL)
        x_NxD = last(x_NxD, length, mask_BxLxM, needed_BxP, order_BxL)
        x_NxD = self.final_norm(x_NxD) if self.config.final_norm else x_NxD
        return x_NxD.reshape(rows, -1, width)

    def _without_last(
        self,
        x_NxD: jax.Array,
        kept: int,
        mask_BxLxM: jax.Array | None,
        order_BxL: jax.Array,
        layers: Sequence[Block],
    ) -> jax.Array:
        """Returns x_NxD; of each text, only the first `kept` rows see the layers."""
        x_BxLxD = x_NxD.reshape(*order_BxL.shape, -1)
        x_BxLxD, last_BxPxD = jnp.split(x_BxLxD, [kept], axis=1)
        if mask_BxLxM is not None:
            mask_BxLxM = mask_BxLxM[:, :kept, :kept]
        shape, barrier = x_BxLxD.shape, jax.lax.optimization_barrier  # as above
        x_NxD = barrier(x_BxLxD.reshape(-1, shape[-1]))
        for layer in layers:
            x_NxD = layer(x_NxD, kept, mask_BxLxM, order_BxL=order_BxL)
        # Without this one, XLA:GPU finds no kernel for a product in the backward pass.
        x_BxLxD = barrier(x_NxD).reshape(shape)
        x_BxLxD = jnp.concatenate([x_BxLxD, last_BxPxD], axis=1)
        return barrier(x_BxLxD.reshape(-1, shape[-1]))


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
        attention_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Returns float32 logits_BxPxV."""
        if self.config.sparse_last_layer:
            needed = {"needed_BxP": positions_BxP}
            return self.logits(super().__call__(tokens_BxL, attention_mask, **needed))
        hidden_BxLxD = super().__call__(tokens_BxL, attention_mask)
        if not self.config.sparse_prediction:
            logits_BxLxV = self.logits(hidden_BxLxD)
            return jnp.take_along_axis(logits_BxLxV, positions_BxP[..., None], 1)
        hidden_BxPxD = jnp.take_along_axis(hidden_BxLxD, positions_BxP[..., None], 1)
        return self.logits(hidden_BxPxD)

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
    """Tokens to class logits: pooling, dense, tanh, dropout, dense (section 5).

    Attributes:
      classes: number of logits.
      head_width: of the hidden layer.
      pooling: "cls" reads the hidden state at position 0, "mean" the mean of all.
    """

    classes: int = 2
    head_width: int = 1024
    pooling: str = "cls"

    def setup(self):
        super().setup()
        config, init = self.config, nn.initializers.normal(self.config.init_std)
        self.pooler = nn.Dense(self.head_width, dtype=config.dtype, kernel_init=init)
        self.head = nn.Dense(self.classes, dtype=jnp.float32, kernel_init=init)
        self.drop = drop(self.dropout)

    def __call__(
        self, tokens_BxL: jax.Array, attention_mask_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 logits_BxC."""
        types_BxL = second_segment(tokens_BxL) if self.config.token_types > 1 else None
        hidden_BxLxD = super().__call__(tokens_BxL, attention_mask_BxL, types_BxL)
        pooled_BxD = hidden_BxLxD[:, 0]
        if self.pooling == "mean":
            mask_BxL = attention_mask_BxL
            where = None if mask_BxL is None else mask_BxL.astype(bool)[..., None]
            pooled_BxD = hidden_BxLxD.mean(axis=1, where=where)
        return self.head(self.drop(jnp.tanh(self.pooler(pooled_BxD))))


def on_any_device(config: ModelConfig, **changes: Any) -> ModelConfig:
    """Returns the model with the attention that every device can compute.

    The choice of the implementation changes no parameter. `changes` are made, too.
    """
    return dataclasses.replace(config, attention="xla", **changes)

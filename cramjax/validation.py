"""The held-out masked-LM loss, comparable between runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.data import tokenizer
from cramjax.data.corpus import Blocks
from cramjax.losses import cross_entropy
from cramjax.masking import mask_tokens
from cramjax.model import MaskedLM
from cramjax.schema import Config

KEY = 15  # of the masks: the same for every run, whatever its seed


def held_out_loss(config: Config, params: Any, blocks: Blocks) -> float:
    """Returns the mean loss in nats per masked token.

    All chosen positions are <mask>: none is given away by being kept, whatever the
    training's mixture. Each block's mask depends on its number in the held-out part
    alone, so runs with another micro-batch, masking rate or seed are scored on the same
    question.

    Args:
      config: `validation` and `model` are read, and `micro_batch` for the batch size.
      params: of `model.MaskedLM`.
      blocks: the held-out part; the first `validation.max_blocks` of it are used.
    """
    rows = min(len(blocks), config.validation.max_blocks)
    total = 0.0
    for start in range(0, rows, config.micro_batch):
        ids_B = np.arange(start, start + config.micro_batch)
        tokens_BxL = blocks.take(np.minimum(ids_B, rows - 1))
        loss_B = _row_losses(config, params, tokens_BxL, ids_B.astype(np.int32))
        total += float(np.sum(np.asarray(loss_B)[ids_B < rows]))
    return total / rows


@functools.partial(jax.jit, static_argnums=0)
def _row_losses(config: Config, params, tokens_BxL, ids_B):
    def corrupt(row_id, tokens_L):
        return mask_tokens(
            jax.random.fold_in(jax.random.key(KEY), row_id),
            tokens_L[None],
            mask_rate=config.validation.mask_rate,
            mask_id=tokenizer.MASK,
            vocab_size=config.model.vocab_size,
            mask_share=1.0,
            random_share=0.0,
        )

    masked = jax.tree.map(lambda x: x[:, 0], jax.vmap(corrupt)(ids_B, tokens_BxL))
    logits_BxPxV = MaskedLM(config.model).apply(
        {"params": params}, masked.tokens_BxL, masked.positions_BxP
    )
    return jax.vmap(cross_entropy)(logits_BxPxV, jnp.asarray(masked.targets_BxP))

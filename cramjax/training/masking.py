"""The corruption of masked language modelling, on the device, with static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cramjax.model.flops import predicted_per_row
from cramjax.tokens import MASK


class MaskedBatch(NamedTuple):
    """A corrupted batch, and the tokens that the model must predict."""

    tokens_BxL: jax.Array
    positions_BxP: jax.Array
    targets_BxP: jax.Array
    weights_BxP: jax.Array | None = None  # of the loss, 0 or 1; None = all 1


def mask_tokens(
    key: jax.Array,
    tokens_BxL: jax.Array,
    *,
    mask_rate: float,
    vocab_size: int,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    predicted_count: jax.Array | None = None,
    unpredictable_ids: tuple[int, ...] = (),
    part: tuple[jax.Array | int, int] = (0, 1),
) -> MaskedBatch:
    """Selects exactly P = round(mask_rate * L) positions of every row for prediction.

    Positions are drawn uniformly without replacement, with no regard to special tokens
    other than `unpredictable_ids`. The first round(mask_share P) become <mask>, the
    following ones up to round((mask_share + random_share) P) a uniformly random token,
    and the rest are kept (80/10/10 as in BERT, arXiv 1810.04805; the exact counts are
    those of the authors' implementation of arXiv 2212.14034). In short rows the
    rounding matters: of P = 5, 4 are masked and 1 is kept.

    Args:
      key: the only source of randomness.
      tokens_BxL: any integer dtype.
      mask_rate: fraction of positions, static.
      vocab_size: random tokens are drawn from [0, vocab_size), static.
      mask_share: fraction of the P that becomes <mask>, static.
      random_share: fraction of the P that becomes a random token, static.
      predicted_count: a number up to P, traced: only this many positions are corrupted
        and weighted in the loss, and the two fractions refer to them. None means P.
      unpredictable_ids: tokens that are never predicted, static. If a row has fewer
        than P other tokens, the remaining positions fall on these and have weight 0.
      part: (index, traced; number of parts, static): the batch is one of equal parts of
        a larger one, and masked as it is there.
    """
    rows, length = tokens_BxL.shape
    count = predicted_per_row(mask_rate, length)
    index, parts = part

    def own(x):
        return x if parts == 1 else jax.lax.dynamic_slice_in_dim(x, index * rows, rows)

    if predicted_count is None:
        masked_count = round(mask_share * count)
        corrupted_count = round((mask_share + random_share) * count)
    else:
        masked_count = jnp.round(mask_share * predicted_count)
        corrupted_count = jnp.round((mask_share + random_share) * predicted_count)

    tokens_BxL = jnp.asarray(tokens_BxL, jnp.int32)
    position_key, token_key = jax.random.split(key)
    # The P largest of L random numbers, in random order: a sample without replacement.
    noise_BxL = own(jax.random.uniform(position_key, (rows * parts, length)))
    for token_id in unpredictable_ids:
        noise_BxL = jnp.where(tokens_BxL == token_id, -1.0, noise_BxL)
    positions_BxP = jax.lax.top_k(noise_BxL, count)[1]
    targets_BxP = jnp.take_along_axis(tokens_BxL, positions_BxP, axis=1)
    random_BxP = own(
        jax.random.randint(token_key, (rows * parts, count), 0, vocab_size)
    )
    rank_1xP = jnp.arange(count)[None, :]
    new_BxP = jnp.where(
        rank_1xP < masked_count,
        MASK,
        jnp.where(rank_1xP < corrupted_count, random_BxP, targets_BxP),
    )
    weights_BxP = None
    if predicted_count is not None or unpredictable_ids:
        weights_BxP = jnp.ones(targets_BxP.shape)
    if predicted_count is not None:
        weights_BxP *= rank_1xP < predicted_count
    for token_id in unpredictable_ids:
        weights_BxP *= targets_BxP != token_id
    row_Bx1 = jnp.arange(rows)[:, None]
    corrupted_BxL = tokens_BxL.at[row_Bx1, positions_BxP].set(
        new_BxP, unique_indices=True
    )
    return MaskedBatch(corrupted_BxL, positions_BxP, targets_BxP, weights_BxP)

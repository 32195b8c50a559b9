"""Masked language modelling's corruption, on the device, with static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cramjax.model.flops import predicted_positions


class Masked(NamedTuple):
    """A corrupted batch: what the model sees, and what it must predict where."""

    tokens_BxL: jax.Array
    positions_BxP: jax.Array
    targets_BxP: jax.Array
    weights_BxP: jax.Array | None = None  # of the loss, 0 or 1; None = all 1


def mask_tokens(
    key: jax.Array,
    tokens_BxL: jax.Array,
    *,
    mask_rate: float,
    mask_id: int,
    vocab_size: int,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    predicted: jax.Array | None = None,
    never_ids: tuple[int, ...] = (),
) -> Masked:
    """Masks exactly P = round(mask_rate * L) positions of every row.

    Positions are drawn without regard to special tokens but `never_ids`, all of a row
    equally likely. Of the P, the first round(0.8 P) become <mask>, those up to
    round(0.9 P) a uniformly random token, the rest stay as they are (80/10/10 as in
    BERT, arXiv 1810.04805; the exact counts are those of the authors' implementation of
    arXiv 2212.14034). In short rows the rounding shows: of P = 5, 4 are masked and 1
    stays.

    Args:
      key: all the randomness there is.
      tokens_BxL: any integer dtype.
      mask_rate: fraction of positions, static.
      mask_id: the id of <mask>, static.
      vocab_size: random tokens are drawn from [0, vocab_size), static.
      mask_share: fraction of the P that becomes <mask>, static.
      random_share: fraction of the P that becomes a random token, static.
      predicted: a number up to P, traced: only so many are corrupted and weigh in the
        loss, and the shares are of these. None means P.
      never_ids: tokens that are never predicted, static. The P positions are drawn
        among the others; in a row with fewer than P others, the rest of the P fall on
        these tokens and weigh 0 in the loss.
    """
    rows, length = tokens_BxL.shape
    count = predicted_positions(mask_rate, length)
    if predicted is None:
        masked = round(mask_share * count)
        replaced = round((mask_share + random_share) * count)
    else:
        masked = jnp.round(mask_share * predicted)
        replaced = jnp.round((mask_share + random_share) * predicted)

    tokens_BxL = jnp.asarray(tokens_BxL, jnp.int32)
    position_key, token_key = jax.random.split(key)
    # The P largest of L random numbers, in random order: a sample without replacement.
    noise_BxL = jax.random.uniform(position_key, (rows, length))
    for never_id in never_ids:
        noise_BxL = jnp.where(tokens_BxL == never_id, -1.0, noise_BxL)
    positions_BxP = jax.lax.top_k(noise_BxL, count)[1]
    targets_BxP = jnp.take_along_axis(tokens_BxL, positions_BxP, axis=1)
    random_BxP = jax.random.randint(token_key, (rows, count), 0, vocab_size)
    order_1xP = jnp.arange(count)[None, :]
    new_BxP = jnp.where(
        order_1xP < masked,
        mask_id,
        jnp.where(order_1xP < replaced, random_BxP, targets_BxP),
    )
    weights_BxP = None
    if predicted is not None or never_ids:
        weights_BxP = jnp.ones(targets_BxP.shape)
    if predicted is not None:
        weights_BxP *= order_1xP < predicted
    for never_id in never_ids:
        weights_BxP *= targets_BxP != never_id
    row_Bx1 = jnp.arange(rows)[:, None]
    return Masked(
        tokens_BxL.at[row_Bx1, positions_BxP].set(new_BxP, unique_indices=True),
        positions_BxP,
        targets_BxP,
        weights_BxP,
    )

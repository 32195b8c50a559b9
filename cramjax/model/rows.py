"""Which positions of a text are computed, in which order, and which see each other."""

import jax
import jax.numpy as jnp

from cramjax.tokens import SEP


def rows_at(
    x_NxD: jax.Array, length: int, positions_BxP: jax.Array | None
) -> jax.Array:
    """Returns the rows of x_NxD, N = B L, at the positions; without any, all rows."""
    if positions_BxP is None:
        return x_NxD
    first_Bx1 = length * jnp.arange(len(positions_BxP))[:, None]
    return jnp.take(x_NxD, (first_Bx1 + positions_BxP).ravel(), axis=0)


def needed_last(needed_BxP: jax.Array, length: int) -> jax.Array:
    """Returns order_BxL: a row's other positions, increasing, then the needed ones."""
    all_1x1xL = jnp.arange(length)[None, None]
    is_needed_BxL = (needed_BxP[..., None] == all_1x1xL).any(axis=1)
    order_BxL = jnp.argsort(is_needed_BxL, axis=1, stable=True)
    others_BxK = order_BxL[:, : length - needed_BxP.shape[1]]
    return jnp.concatenate([others_BxK, needed_BxP], axis=1)


def reordered(mask_BxLxM: jax.Array | None, order_BxL: jax.Array) -> jax.Array | None:
    """Returns an attention mask, BxLxM or Bx1xM, of tokens in another order."""
    if mask_BxLxM is None:
        return None
    if mask_BxLxM.shape[1] > 1:
        mask_BxLxM = jnp.take_along_axis(mask_BxLxM, order_BxL[..., None], axis=1)
    return jnp.take_along_axis(mask_BxLxM, order_BxL[:, None], axis=2)


def document_mask(tokens_BxL: jax.Array) -> jax.Array:
    """Returns mask_BxLxM: 1 within a document of a packed block; it ends in <sep>."""
    document_BxL = _ends_before(tokens_BxL)
    return document_BxL[:, :, None] == document_BxL[:, None, :]


def second_segment(tokens_BxL: jax.Array) -> jax.Array:
    """Returns types_BxL: 1 from B of `<cls> A <sep> B <sep>` on, else 0.

    A may contain further `<sep>`; a row with one `<sep>` has no second segment.
    """
    count_Bx1 = (tokens_BxL == SEP).astype(jnp.int32).sum(axis=1, keepdims=True)
    first_of_b_Bx1 = jnp.maximum(count_Bx1 - 1, 1)
    return (_ends_before(tokens_BxL) >= first_of_b_Bx1).astype(jnp.int32)


def _ends_before(tokens_BxL: jax.Array) -> jax.Array:
    """Returns count_BxL: how many <sep> come before a position."""
    ends_BxL = (tokens_BxL == SEP).astype(jnp.int32)
    return jnp.cumsum(ends_BxL, axis=1) - ends_BxL

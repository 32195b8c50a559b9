"""The loss, in float32."""

import jax
import jax.numpy as jnp

from cramjax.model.reductions import sums


def squared_error(outputs_Bx1: jax.Array, targets_B: jax.Array) -> jax.Array:
    """Returns the mean squared error of a regression."""
    return jnp.mean(jnp.square(outputs_Bx1.astype(jnp.float32)[:, 0] - targets_B))


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns cross-entropies in nats; logits have one axis more than labels."""
    logits_NxC = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32)
    rows = _rows(logits_NxC, labels.reshape(-1))
    return rows.reshape(labels.shape)


@jax.custom_vjp
def _rows(logits_NxC: jax.Array, labels_N: jax.Array) -> jax.Array:
    """Reads the logits, the largest array there is, as seldom as it can.

    Twice forward and once backward; autodiff's version scatters a gradient into float32
    of their size and adds it to another.
    """
    return _forward(logits_NxC, labels_N)[0]


def _forward(logits_NxC, labels_N):
    largest_N = jnp.max(logits_NxC, axis=1)
    of_label_NxC = jnp.where(_is_label(logits_NxC, labels_N), logits_NxC, 0)
    sum_N, of_label_N = sums(
        (jnp.exp(logits_NxC - largest_N[:, None]), of_label_NxC), axis=1
    )
    normalizer_N = jnp.log(sum_N) + largest_N
    return normalizer_N - of_label_N, (logits_NxC, labels_N, normalizer_N)


def _backward(kept, dloss_N):
    logits_NxC, labels_N, normalizer_N = kept
    probs_NxC = jnp.exp(logits_NxC - normalizer_N[:, None])
    dlogits_NxC = (probs_NxC - _is_label(logits_NxC, labels_N)) * dloss_N[:, None]
    return dlogits_NxC, None


def _is_label(logits_NxC, labels_N):
    return jnp.arange(logits_NxC.shape[1])[None] == labels_N[:, None]


_rows.defvjp(_forward, _backward)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Returns the mean of `cross_entropies`, weighted along the labels' last axis."""
    if weights is None:
        return jnp.mean(cross_entropies(logits, labels))
    weights = jnp.broadcast_to(weights, labels.shape)
    return jnp.average(cross_entropies(logits, labels), weights=weights)

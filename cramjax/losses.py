"""The loss, in float32."""

import jax
import jax.numpy as jnp
import optax


def squared_error(outputs_Bx1: jax.Array, targets_B: jax.Array) -> jax.Array:
    """Returns the mean squared error of a regression."""
    return jnp.mean(jnp.square(outputs_Bx1.astype(jnp.float32)[:, 0] - targets_B))


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns cross-entropies in nats; logits have one axis more than labels."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Returns the mean of `cross_entropies`, weighted along the labels' last axis."""
    if weights is None:
        return jnp.mean(cross_entropies(logits, labels))
    weights = jnp.broadcast_to(weights, labels.shape)
    return jnp.average(cross_entropies(logits, labels), weights=weights)

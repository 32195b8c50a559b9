"""LayerNorm and cross-entropy with backward passes written by hand.

Autodiff's versions are right but move more memory, which is what limits these two:

- in LayerNorm's, XLA computes the statistics again in every kernel of the backward pass
  and writes float32 products to memory to sum them up: 11 reads and writes of the
  layer's input where the pass below makes 6;
- cross-entropy's scatters a gradient into a float32 array of the logits' size and adds
  it to another. The logits are the largest array of a step; the pass below reads them
  twice forward and once backward.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


def _sums(arrays: tuple[jax.Array, ...], axis: int) -> tuple[jax.Array, ...]:
    """Returns the sum of each float32 array over an axis; all have the same shape.

    XLA reads their common input once, not once for each. Has no gradient.
    """

    def add(left, right):
        return tuple(a + b for a, b in zip(left, right, strict=True))

    return jax.lax.reduce(arrays, (jnp.float32(0),) * len(arrays), add, (axis,))


class LayerNorm(nn.Module):
    """`layer_norm` with its two parameters, float32.

    Attributes:
      epsilon: added to the variance.
      dtype: of the result.
    """

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x, normalized over its last axis."""
        width = x.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, width)
        bias_D = self.param("bias", nn.initializers.zeros, width)
        x_NxD = x.reshape(-1, *width)
        y_NxD = layer_norm(x_NxD, scale_D, bias_D, self.epsilon, self.dtype)
        return y_NxD.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x_NxD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float, dtype: str
) -> jax.Array:
    """Returns normed_NxD in `dtype`; computes in float32."""
    return _norm_forward(x_NxD, scale_D, bias_D, epsilon, dtype)[0]


def _norm_forward(x_NxD, scale_D, bias_D, epsilon, dtype):
    x_NxD_32 = x_NxD.astype(jnp.float32)
    sum_N, squares_N = _sums((x_NxD_32, jnp.square(x_NxD_32)), axis=1)
    mean_Nx1 = sum_N[:, None] / x_NxD.shape[1]
    square_Nx1 = squares_N[:, None] / x_NxD.shape[1]
    variance_Nx1 = jnp.maximum(square_Nx1 - jnp.square(mean_Nx1), 0)
    inverse_Nx1 = jax.lax.rsqrt(variance_Nx1 + epsilon)
    y_NxD = (x_NxD_32 - mean_Nx1) * inverse_Nx1 * scale_D[None] + bias_D[None]
    return y_NxD.astype(dtype), (x_NxD, mean_Nx1, inverse_Nx1, scale_D)


def _norm_backward(epsilon, dtype, kept, dy_NxD):
    del epsilon, dtype
    x_NxD, mean_Nx1, inverse_Nx1, scale_D = kept
    # Without the barrier XLA would compute them again from x.
    mean_Nx1, inverse_Nx1 = jax.lax.optimization_barrier((mean_Nx1, inverse_Nx1))
    dy_NxD = dy_NxD.astype(jnp.float32)
    unit_NxD = (x_NxD.astype(jnp.float32) - mean_Nx1) * inverse_Nx1
    dscale_D, dbias_D = _sums((dy_NxD * unit_NxD, dy_NxD), axis=0)
    dunit_NxD = dy_NxD * scale_D[None]
    common_Nx1 = jnp.mean(dunit_NxD, axis=1, keepdims=True)
    along_Nx1 = jnp.mean(dunit_NxD * unit_NxD, axis=1, keepdims=True)
    dx_NxD = (dunit_NxD - common_Nx1 - unit_NxD * along_Nx1) * inverse_Nx1
    return dx_NxD.astype(x_NxD.dtype), dscale_D, dbias_D


layer_norm.defvjp(_norm_forward, _norm_backward)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Returns the mean of `cross_entropies`; weights broadcast to the labels' shape."""
    if weights is None:
        return jnp.mean(cross_entropies(logits, labels))
    weights = jnp.broadcast_to(weights, labels.shape)
    return jnp.average(cross_entropies(logits, labels), weights=weights)


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns float32 cross-entropies in nats; logits have one axis more than labels.

    The last axis of the logits is that of the classes.
    """
    logits_NxC = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32)
    return _cross_entropies(logits_NxC, labels.reshape(-1)).reshape(labels.shape)


@jax.custom_vjp
def _cross_entropies(logits_NxC: jax.Array, labels_N: jax.Array) -> jax.Array:
    return _loss_forward(logits_NxC, labels_N)[0]


def _loss_forward(logits_NxC, labels_N):
    largest_N = jnp.max(logits_NxC, axis=1)
    of_label_NxC = jnp.where(_is_label(logits_NxC, labels_N), logits_NxC, 0)
    sum_N, of_label_N = _sums(
        (jnp.exp(logits_NxC - largest_N[:, None]), of_label_NxC), axis=1
    )
    normalizer_N = jnp.log(sum_N) + largest_N
    return normalizer_N - of_label_N, (logits_NxC, labels_N, normalizer_N)


def _loss_backward(kept, dloss_N):
    logits_NxC, labels_N, normalizer_N = kept
    probs_NxC = jnp.exp(logits_NxC - normalizer_N[:, None])
    dlogits_NxC = (probs_NxC - _is_label(logits_NxC, labels_N)) * dloss_N[:, None]
    return dlogits_NxC, None


def _is_label(logits_NxC, labels_N):
    return jnp.arange(logits_NxC.shape[1])[None] == labels_N[:, None]


_cross_entropies.defvjp(_loss_forward, _loss_backward)

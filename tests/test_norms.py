"""LayerNorm's forward and backward pass, against Flax's left to autodiff."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.model.custom_vjp import layer_norm

EPSILON = 1e-12


def reference(x_NxD, scale_D, bias_D):
    module = nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False)
    return module.apply({"params": {"scale": scale_D, "bias": bias_D}}, x_NxD)


def inputs(rows=6, width=32):
    keys = jax.random.split(jax.random.key(0), 4)
    x_NxD, cotangent_NxD = (
        jax.random.normal(key, (rows, width)) * 3 + 1 for key in keys[:2]
    )
    scale_D, bias_D = (jax.random.normal(key, (width,)) for key in keys[2:])
    return (x_NxD, scale_D, bias_D), cotangent_NxD


def test_by_hand():
    x_1x2 = jnp.array([[1.0, 3.0]])  # mean 2, standard deviation 1
    normed = layer_norm(
        x_1x2, jnp.array([2.0, 3.0]), jnp.array([5.0, 6.0]), 0.0, "float32"
    )
    np.testing.assert_allclose(normed, [[3.0, 9.0]], rtol=1e-6)


def test_it_and_its_gradients_are_the_reference():
    arguments, cotangent_NxD = inputs()
    ours, back = jax.vjp(lambda *a: layer_norm(*a, EPSILON, "float32"), *arguments)
    theirs, reference_back = jax.vjp(reference, *arguments)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    for mine, other in zip(
        back(cotangent_NxD), reference_back(cotangent_NxD), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=2e-5)


@pytest.mark.parametrize("offset", [100.0, -100.0])
def test_rows_far_from_zero_keep_four_digits(offset):
    (x_NxD, scale_D, bias_D), _ = inputs()
    far_NxD = x_NxD + offset
    ours = layer_norm(far_NxD, scale_D, bias_D, EPSILON, "float32")
    np.testing.assert_allclose(ours, reference(far_NxD, scale_D, bias_D), atol=2e-3)


def test_equal_numbers_in_a_row_stay_finite():
    x_NxD = jnp.full((3, 768), 0.1)
    _, back = jax.vjp(
        lambda x: layer_norm(x, jnp.ones(768), jnp.zeros(768), EPSILON, "float32"),
        x_NxD,
    )
    assert np.isfinite(back(jnp.ones_like(x_NxD))[0]).all()


def test_it_computes_in_float32_and_returns_what_it_is_told():
    (x_NxD, scale_D, bias_D), cotangent_NxD = inputs()
    half_NxD = x_NxD.astype(jnp.bfloat16)
    normed, back = jax.vjp(
        lambda *a: layer_norm(*a, EPSILON, "bfloat16"), half_NxD, scale_D, bias_D
    )
    assert normed.dtype == jnp.bfloat16
    exact = reference(half_NxD.astype(jnp.float32), scale_D, bias_D)
    np.testing.assert_array_equal(normed, exact.astype(jnp.bfloat16))
    dx_NxD, dscale_D, dbias_D = back(cotangent_NxD.astype(jnp.bfloat16))
    assert dx_NxD.dtype == jnp.bfloat16
    assert dscale_D.dtype == dbias_D.dtype == jnp.float32

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cramjax.model.custom_vjp import cross_entropies, cross_entropy


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    labels = jnp.array([[1, 0]])
    each = cross_entropies(logits, labels)
    np.testing.assert_allclose(each, [[np.log(4), np.log(10)]], rtol=1e-6)
    assert float(cross_entropy(logits, labels)) == pytest.approx(np.log(40) / 2)
    for weights, expected in (([1.0, 0.0], np.log(4)), ([0.0, 1.0], np.log(10))):
        loss = cross_entropy(logits, labels, jnp.array(weights))
        assert float(loss) == pytest.approx(expected)


def test_it_is_computed_in_float32():
    logits = jnp.full((1, 4), 300.0, jnp.bfloat16)
    assert cross_entropies(logits, jnp.array([1])).dtype == jnp.float32


def test_gradients_are_those_of_optax():
    keys = jax.random.split(jax.random.key(0), 3)
    logits_BxPxV = 5 * jax.random.normal(keys[0], (2, 3, 11)) + 40
    labels_BxP = jax.random.randint(keys[1], (2, 3), 0, 11)
    weights_BxP = jax.random.normal(keys[2], (2, 3))

    def weighed(function):
        return lambda logits: jnp.sum(function(logits, labels_BxP) * weights_BxP)

    reference = optax.softmax_cross_entropy_with_integer_labels
    ours = jax.value_and_grad(weighed(cross_entropies))(logits_BxPxV)
    theirs = jax.value_and_grad(weighed(reference))(logits_BxPxV)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)

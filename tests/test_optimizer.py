import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cramjax.config import OptimizerConfig, load
from cramjax.config.training import OPTIMIZERS
from cramjax.model.encoder import Classifier, MaskedLM
from cramjax.training.optimizer import (
    METHODS,
    decay_mask,
    make_optimizer,
    muon_labels,
)


def test_decay_mask_against_a_tree_written_by_hand(tiny):
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = Classifier(tiny.model, classes=3).init(jax.random.key(0), tokens)
    norm = {"scale": False, "bias": False}
    block = {
        "attention_norm": norm,
        "attention": {
            name: {"kernel": True} for name in ("query", "key", "value", "output")
        },
        "ffn_norm": norm,
        "ffn": {name: {"kernel": True} for name in ("gate", "value", "output")},
    }
    assert decay_mask(params["params"]) == {
        "embedding": {"word": True, "positions": {"scale": True}, "norm": norm},
        "layers_0": block,
        "layers_1": block,
        "final_norm": norm,
        "pooler": {"kernel": True, "bias": False},
        "head": {"kernel": True, "bias": False},
    }


def make(**changes):
    values = dict(
        name="adamw",
        learning_rate=0.1,
        b1=0.9,
        b2=0.98,
        eps=1e-12,
        weight_decay=0.01,
        clip_norm=0.5,
    )
    config = OptimizerConfig(**(values | changes))
    return make_optimizer(config, load("configs/default.py").schedule)


START = {
    "progress": jnp.float32(0),
    "rate_scale": jnp.float32(1),
}


def test_first_update_by_hand():
    """The first AdamW step is sign(g); decay adds 0.01 w; the rate is 0.25 * 0.1."""
    params = {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([4.0])}
    grads = {"kernel": jnp.array([3.0, -4.0]), "bias": jnp.array([12.0])}
    optimizer = make()
    updates, state = optimizer.update(
        grads,
        optimizer.init(params),
        params,
        progress=jnp.float32(0),
        rate_scale=jnp.float32(1),
    )
    np.testing.assert_allclose(
        updates["kernel"], [-0.025 * 1.02, 0.025 * 1.01], rtol=1e-5
    )
    np.testing.assert_allclose(updates["bias"], [-0.025], rtol=1e-5)
    assert optax.tree.get(state, "grad_norm") == pytest.approx(13)  # before clipping
    assert optax.tree.get(state, "learning_rate") == pytest.approx(0.025)


def test_clipping_scales_to_the_global_norm():
    grads = {"kernel": jnp.array([3.0, 4.0])}
    for clip_norm, expected in ((0.5, 0.3), (10.0, 3.0), (0.0, 3.0)):
        optimizer = make(clip_norm=clip_norm)
        _, state = optimizer.update(
            grads,
            optimizer.init(grads),
            grads,
            progress=jnp.float32(0),
            rate_scale=jnp.float32(1),
        )
        momentum = optax.tree.get(state, "mu")["kernel"][0]
        assert momentum == pytest.approx(0.1 * expected)


def test_the_table_and_the_schema_have_the_same_names():
    assert tuple(METHODS) == OPTIMIZERS


@pytest.mark.parametrize(
    ("name", "step"),
    [
        # With gradient 3, weight 2, decay 0.01: L2 gives 3.02, decoupled adds 0.02.
        ("sgd", 1.9 * 3.02),  # Nesterov: the gradient and 0.9 of the new momentum
        ("adam_l2", 1.0),  # sign(3.02)
        ("adamw", 1.02),
        ("lion", 1.02),
        ("radam", 3.02),  # no variance yet: plain momentum, bias-corrected
    ],
)
def test_first_steps_by_hand(name, step):
    params = {"kernel": jnp.array([[2.0]])}
    grads = {"kernel": jnp.array([[3.0]])}
    optimizer = make(name=name, clip_norm=0.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, **START)
    np.testing.assert_allclose(updates["kernel"], -0.025 * step, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_down_a_hill(name):
    target = np.random.default_rng(0).normal(size=(4, 6))
    params = {"layers_0": {"kernel": jnp.zeros((4, 6))}, "norm": {"scale": jnp.ones(4)}}
    optimizer = make(name=name, weight_decay=0.0, learning_rate=0.05, clip_norm=0.0)

    def loss(params):
        error = params["layers_0"]["kernel"] - target
        return jnp.mean(error**2) + jnp.mean(params["norm"]["scale"] ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(
            jax.grad(loss)(params), state, params, **START
        )
        return optax.apply_updates(params, updates), state

    state, first = optimizer.init(params), loss(params)
    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.75 * first


def test_muon_is_for_the_kernels_inside_the_layers(tiny):
    tokens = jnp.zeros((1, 8), jnp.int32)
    biases = {"linear_bias": True, "decoder_bias": True}  # the decoder's has no module
    model = dataclasses.replace(tiny.model, head_transform=True, **biases)
    params = MaskedLM(model).init(jax.random.key(0), tokens, tokens[:, :1])["params"]
    labels = muon_labels(params)
    dense, norm = {"kernel": "matrix"}, {"scale": "other", "bias": "other"}
    with_bias = dense | {"bias": "other"}
    block = {
        "attention_norm": norm,
        "attention": {n: dense for n in ("query", "key", "value")}
        | {"output": with_bias},
        "ffn_norm": norm,
        "ffn": {name: with_bias for name in ("gate", "value", "output")},
    }
    assert labels == {
        "embedding": {"word": "other", "positions": {"scale": "other"}, "norm": norm},
        "layers_0": block,
        "layers_1": block,
        "final_norm": norm,
        "transform": {"dense": {"kernel": "other", "bias": "other"}, "norm": norm},
        "decoder_bias": "other",
    }


def test_muons_step_has_equal_singular_values_and_adams_size():
    grads = {
        "layers_0": {
            "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 32)))
        }
    }
    optimizer = make(name="muon", weight_decay=0.0, clip_norm=0.0)
    params = jax.tree.map(jnp.ones_like, grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, **START)
    step = updates["layers_0"]["kernel"] / -0.025
    singular = np.linalg.svd(step, compute_uv=False) / (0.2 * 32**0.5)
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert 0.1 < np.sqrt(np.mean(np.square(step))) < 0.3  # Adam's is 0.2 to 0.4

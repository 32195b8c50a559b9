import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cramjax.config import load
from cramjax.model import Classifier
from cramjax.optimizer import decay_mask, make_optimizer
from cramjax.schema import OptimizerConfig


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
        learning_rate=0.1, b1=0.9, b2=0.98, eps=1e-12, weight_decay=0.01, clip_norm=0.5
    )
    config = OptimizerConfig(**(values | changes))
    return make_optimizer(config, load("configs/default.py").schedule)


START = {"progress": jnp.float32(0), "rate_scale": jnp.float32(1)}


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

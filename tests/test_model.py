import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.config import load
from cramjax.flops import train_flops_per_token
from cramjax.model import Block, Classifier, Encoder, MaskedLM, sinusoids

SOURCE = "data.sources=x.txt"


def random_tokens(rows, length, vocab, seed=0):
    return np.random.default_rng(seed).integers(7, vocab, (rows, length), np.int32)


def test_crammed_bert_has_the_papers_size_and_cost():
    model = load("configs/a4000.py", [SOURCE]).model
    tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    shapes = jax.eval_shape(MaskedLM(model).init, jax.random.key(0), tokens, tokens)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == 119_589_889
    # 6 * 16 * 5,898,240 + 12 * 16 * 128 * 768 + 6 * 768 * 32768 * 0.25
    assert train_flops_per_token(model, 0.25) == 622_854_144
    assert round(train_flops_per_token(model, 1.0) / 1e6, 1) == 736.1


def test_sinusoids():
    table = sinusoids(4, 6)
    assert table.shape == (4, 6)
    np.testing.assert_allclose(table[0], [0, 1, 0, 1, 0, 1])
    angle = 3 / 10000 ** (2 / 6)
    np.testing.assert_allclose(table[3, 2:4], [math.sin(angle), math.cos(angle)], 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shapes_dtypes_and_finiteness(tiny, dtype):
    model = dataclasses.replace(tiny.model, dtype=dtype)
    tokens = random_tokens(3, 16, model.vocab_size)
    positions = np.tile(np.arange(4), (3, 1))
    params = MaskedLM(model).init(jax.random.key(0), tokens, positions)["params"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    hidden = Encoder(model).apply({"params": params}, tokens)
    assert (hidden.shape, hidden.dtype) == ((3, 16, 32), dtype)
    logits = MaskedLM(model).apply({"params": params}, tokens, positions)
    assert (logits.shape, logits.dtype) == ((3, 4, 256), jnp.float32)
    assert np.isfinite(logits).all()
    classifier = Classifier(model, classes=3, head_width=8)
    logits, _ = classifier.init_with_output(jax.random.key(0), tokens)
    assert (logits.shape, logits.dtype) == ((3, 3), jnp.float32)


def test_16_bit_losses_are_close_to_float32(tiny):
    tokens = random_tokens(3, 16, tiny.model.vocab_size)
    params = Encoder(tiny.model).init(jax.random.key(0), tokens)
    exact = Encoder(tiny.model).apply(params, tokens)
    for dtype in ("bfloat16", "float16"):
        model = dataclasses.replace(tiny.model, dtype=dtype)
        rough = Encoder(model).apply(params, tokens).astype(jnp.float32)
        assert jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact) < 2e-2


def test_the_sparse_head_equals_the_dense_one_at_its_positions(tiny):
    tokens = random_tokens(2, 8, tiny.model.vocab_size)
    everywhere = np.tile(np.arange(8), (2, 1))
    model = MaskedLM(tiny.model)
    params = model.init(jax.random.key(0), tokens, everywhere)
    dense = model.apply(params, tokens, everywhere)
    some = np.array([[5, 1], [0, 7]])
    sparse = model.apply(params, tokens, some)
    np.testing.assert_allclose(
        sparse, np.take_along_axis(np.asarray(dense), some[..., None], 1), atol=1e-6
    )


def test_attention_and_ffn_against_numpy(tiny):
    """One block written out, head by head; weights large enough to matter."""
    from scipy.special import erf, softmax

    config = dataclasses.replace(tiny.model, init_std=0.3)
    x = np.random.default_rng(0).normal(size=(1, 5, 32)).astype(np.float32)
    block = Block(config)
    params = block.init(jax.random.key(0), x, None)["params"]
    p = jax.tree.map(np.asarray, params)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    h, heads = norm(x[0]), []
    kernels = {name: p["attention"][name]["kernel"] for name in p["attention"]}
    for head in range(2):
        channels = slice(16 * head, 16 * head + 16)
        q, k, v = (h @ kernels[n][:, channels] for n in ("query", "key", "value"))
        heads.append(softmax(q @ k.T / 4, axis=-1) @ v)  # sqrt(16)
    y = x[0] + np.concatenate(heads, axis=-1) @ kernels["output"]
    gate, value = (norm(y) @ p["ffn"][n]["kernel"] for n in ("gate", "value"))
    gelu = gate * 0.5 * (1 + erf(gate / np.sqrt(2)))
    y = y + (gelu * value) @ p["ffn"]["output"]["kernel"]
    np.testing.assert_allclose(
        block.apply({"params": params}, x, None)[0], y, 1e-4, 1e-4
    )


def test_padding_does_not_change_the_rest(tiny):
    tokens = random_tokens(2, 16, tiny.model.vocab_size)
    padded = np.pad(tokens, ((0, 0), (0, 8)))
    mask = (np.arange(24) < 16).astype(np.int32)[None].repeat(2, 0)
    encoder = Encoder(tiny.model)
    params = encoder.init(jax.random.key(0), tokens)
    plain = encoder.apply(params, tokens)
    with_padding = encoder.apply(params, padded, mask)
    np.testing.assert_allclose(with_padding[:, :16], plain, atol=1e-6)
    without_mask = encoder.apply(params, padded)
    assert np.abs(without_mask[:, :16] - plain).max() > 1e-3  # the mask does the work


def test_dropout_needs_a_key_and_changes_with_it(tiny):
    tokens = random_tokens(2, 16, tiny.model.vocab_size)
    params = Encoder(tiny.model).init(jax.random.key(0), tokens)
    noisy = Encoder(tiny.model, dropout=0.5)
    one, two = (
        noisy.apply(params, tokens, rngs={"dropout": jax.random.key(i)})
        for i in range(2)
    )
    assert np.abs(one - two).max() > 0.1


def test_init(tiny):
    params = Encoder(tiny.model).init(jax.random.key(3), random_tokens(1, 8, 99))
    params = params["params"]
    word = params["embedding"]["word"]
    assert (word[0] == 0).all()  # <pad>
    assert abs(float(word[1:].std()) - 0.02) < 1e-3
    kernel = params["layers_0"]["ffn"]["output"]["kernel"]
    assert abs(float(kernel.std()) - 0.02) < 2e-3
    assert params["embedding"]["position_scale"] == pytest.approx(32**-0.5)

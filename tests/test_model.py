import dataclasses
import functools
import itertools
import math
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.config import load
from cramjax.errors import UserError
from cramjax.model.encoder import Block, Classifier, Encoder, MaskedLM
from cramjax.model.flops import train_flops_per_token
from cramjax.model.layers import BASE, FourierMixing, rotate, rotations, sinusoids
from cramjax.model.rows import document_mask, second_segment
from cramjax.tokens import SEP


def random_tokens(rows, length, vocab, seed=0):
    return np.random.default_rng(seed).integers(7, vocab, (rows, length), np.int32)


def test_crammed_bert_has_the_papers_size_and_cost():
    model = load("configs/default.py").model
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


@pytest.mark.parametrize(
    ("mask", "changes"),
    [
        ("none", {"positions": "rotary"}),
        ("padding", {"norm_placement": "post", "repeats": 2}),
        ("documents", {"positions": "rotary", "global_every": 2, "local_window": 2}),
    ],
    ids=["rotary", "post-repeated", "local"],
)
def test_a_sparse_last_layer_gives_the_same_logits_and_gradients(tiny, mask, changes):
    tokens = random_tokens(2, 12, tiny.model.vocab_size)
    tokens[:, [3, 7]] = SEP
    masks = {"padding": np.arange(12) < np.array([[12], [9]]), "none": None}
    masks["documents"] = document_mask(tokens)
    positions = np.array([[5, 1, 8], [0, 7, 2]])
    whole = MaskedLM(dataclasses.replace(tiny.model, **changes))
    sparse = MaskedLM(
        dataclasses.replace(tiny.model, sparse_last_layer=True, **changes)
    )
    params = jax.jit(whole.init)(jax.random.key(0), tokens, positions)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
    def loss_of(model, params):
        logits = model.apply(params, tokens, positions, masks[mask])
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    (_, expected), grads = loss_of(whole, params)
    (_, found), found_grads = loss_of(sparse, params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for a, b in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_attention_and_ffn_against_numpy(tiny):
    """One block written out, head by head; weights large enough to matter."""
    from scipy.special import erf, softmax

    config = dataclasses.replace(tiny.model, init_std=0.3)
    x = np.random.default_rng(0).normal(size=(1, 5, 32)).astype(np.float32)
    block = Block(config)
    params = block.init(jax.random.key(0), x[0], 5, None)["params"]
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
        block.apply({"params": params}, x[0], 5, None), y, 1e-4, 1e-4
    )


def test_dropout_needs_a_key_and_changes_with_it(tiny):
    tokens = random_tokens(2, 16, tiny.model.vocab_size)
    params = Encoder(tiny.model).init(jax.random.key(0), tokens)
    noisy = Encoder(tiny.model, dropout=0.5)
    one, two = (
        noisy.apply(params, tokens, rngs={"dropout": jax.random.key(i)})
        for i in range(2)
    )
    assert np.abs(one - two).max() > 0.1


def test_dropout_is_where_the_original_has_it(tiny):
    """Embedding; attention probabilities and two residuals a layer; classifier."""
    places = []

    def note(next_call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            assert context.module.rate == 0.1
            places.append("/".join(context.module.path[:-1]))
        return next_call(*args, **kwargs)

    model = Classifier(tiny.model, dropout=0.1)
    tokens = random_tokens(2, 16, tiny.model.vocab_size)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with nn.intercept_methods(note):
        model.init(rngs, tokens)
    layers = [f"layers_{i}" for i in range(2) for _ in range(2)]
    attention = [f"layers_{i}/attention" for i in range(2)]
    assert sorted(places) == sorted(["embedding", "", *layers, *attention])


def test_init(tiny):
    params = Encoder(tiny.model).init(jax.random.key(3), random_tokens(1, 8, 99))
    params = params["params"]
    word = params["embedding"]["word"]
    assert (word[0] == 0).all()  # <pad>
    assert abs(float(word[1:].std()) - 0.02) < 1e-3
    kernel = params["layers_0"]["ffn"]["output"]["kernel"]
    assert abs(float(kernel.std()) - 0.02) < 2e-3
    assert params["embedding"]["positions"]["scale"] == pytest.approx(32**-0.5)


@pytest.mark.parametrize(
    ("init", "word", "query", "value", "output"),
    [
        ("normal", 0.02, 0.02, 0.02, 0.02),
        (
            "small",
            (2 / 160) ** 0.5,
            (2 / 160) ** 0.5,
            (2 / 160) ** 0.5,
            (2 / 160) ** 0.5,
        ),
        ("megatron", 0.02, 0.02, 0.02, 0.02 / 4**0.5),  # N = 2
        ("wang", *[(2 / 160) ** 0.5] * 3, 2 / 2 / 32**0.5),
        # Xavier: variance 2 / (32 + 32); (8 N)^-1/4 = 1/2
        ("deepnorm", 0.02, 32**-0.5, 32**-0.5 / 2, 32**-0.5 / 2),
    ],
)
def test_inits_by_name(tiny, init, word, query, value, output):
    model = dataclasses.replace(tiny.model, init=init, layers=1, repeats=2)
    tokens = random_tokens(1, 8, 99)
    params = Encoder(model).init(jax.random.key(3), tokens)["params"]
    assert (params["embedding"]["word"][0] == 0).all()
    assert params["embedding"]["word"][1:].std() == pytest.approx(word, rel=0.05)
    attention = params["layers_0"]["attention"]
    for name, std in (("query", query), ("value", value), ("output", output)):
        assert attention[name]["kernel"].std() == pytest.approx(std, rel=0.1)


def test_rotary_positions_turn_by_the_distance(tiny):
    """Scores depend on the distance of query and key alone, and do depend on it."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
    q, k = (np.repeat(x, 8, axis=1) for x in (q, k))  # the same at every position
    turns = rotations(8, 16, BASE)
    scores = np.einsum("BLHK,BMHK->LM", rotate(q, turns), rotate(k, turns))
    for distance in range(-3, 4):
        np.testing.assert_allclose(np.ptp(np.diagonal(scores, distance)), 0, atol=1e-5)
    assert np.ptp([scores[0, i] for i in range(8)]) > 0.1
    # Channels i and i + 8 turn by position / 10000^(i / 8).
    expected = q[0, 3, 0, 1] * np.cos(3 * 10 ** (-1 / 2)) - q[0, 3, 0, 9] * np.sin(
        3 * 10 ** (-1 / 2)
    )
    np.testing.assert_allclose(rotate(q, turns)[0, 3, 0, 1], expected, rtol=1e-5)


def test_positions_are_added_rotated_or_both(tiny):
    """Each of both changes the states, and has the parameters that it needs."""
    tokens = random_tokens(2, 8, tiny.model.vocab_size)
    states = {}
    for positions in (
        "none",
        "rotary",
        "scaled_sinusoidal",
        "scaled_sinusoidal+rotary",
    ):
        model = dataclasses.replace(tiny.model, positions=positions, init_std=0.5)
        params = Encoder(model).init(jax.random.key(0), tokens)["params"]
        assert ("positions" in params["embedding"]) == positions.startswith("scaled")
        states[positions] = Encoder(model).apply({"params": params}, tokens)
    for one, other in itertools.combinations(states.values(), 2):
        assert np.abs(one - other).max() > 1e-3


def test_fourier_mixing_is_the_transform_over_the_text_alone(tiny):
    config = dataclasses.replace(tiny.model, mixing="fourier")
    x = np.random.default_rng(0).normal(size=(2, 12, 32)).astype(np.float32)
    layer = FourierMixing(config)
    params = {"params": {"output": {"kernel": np.eye(32, dtype=np.float32)}}}
    mask = np.ones((2, 12), np.int32)
    mask[1, 7:] = 0
    x_NxD = x.reshape(-1, 32)
    mixed = layer.apply(params, x_NxD, 12, mask[:, None]).reshape(x.shape)
    for row, length in ((0, 12), (1, 7)):
        expected = np.fft.fft2(x[row, :length], norm="ortho").real
        np.testing.assert_allclose(mixed[row, :length], expected, atol=1e-5)
    np.testing.assert_allclose(
        layer.apply(params, x_NxD, 12, None)[:12], mixed[0], atol=1e-5
    )


def test_shared_layers_are_gone_through_again(tiny):
    """Two times the same two layers are four layers with these weights."""
    tokens = random_tokens(2, 8, tiny.model.vocab_size)
    twice = dataclasses.replace(tiny.model, repeats=2)
    params = Encoder(twice).init(jax.random.key(0), tokens)["params"]
    four = dataclasses.replace(tiny.model, layers=4)
    unrolled = params | {"layers_2": params["layers_0"], "layers_3": params["layers_1"]}
    np.testing.assert_array_equal(
        Encoder(twice).apply({"params": params}, tokens),
        Encoder(four).apply({"params": unrolled}, tokens),
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.activation=swish",
            "config.model.activation is 'swish': must be one",
        ),
        ("model.positions=alibi", "config.model.positions is 'alibi': must be one"),
        ("model.heads=7", "config.model.heads is 7: must be a divisor of model.width"),
        ("model.ffn_width=3071", "config.model.ffn_width is 3071: must be even"),
        ("model.ffn_every=17", "config.model.ffn_every is 17: must be between 1 and"),
        ("model.repeats=0", "config.model.repeats is 0: must be > 0"),
        ("model.init=xavier", "config.model.init is 'xavier': must be one of"),
    ],
)
def test_a_wrong_shape_or_name_is_one_line(override, message):
    with pytest.raises(UserError) as error:
        load("configs/a4000.py", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_combinations_that_cannot_be_are_refused():
    for overrides, key in (
        (["model.norm_placement=post", "model.first_norm=False"], "first_norm"),
        (["model.positions=rotary", "model.mixing=fourier"], "positions"),
        (["model.positions=rotary", "model.width=60"], "positions"),  # 5 a head
        (["model.positions=sinusoidal+rotary", "model.mixing=fourier"], "positions"),
        (["model.embedding_width=127"], "embedding_width"),
        (["model.positions=learned", "glue.max_length=256"], "glue.max_length"),
        (["model.positions=learned+rotary", "glue.max_length=256"], "glue.max_length"),
    ):
        with pytest.raises(UserError, match=f"config.*{key}"):
            load("configs/a4000.py", overrides)


def test_a_full_width_bfloat16_forward_is_close_to_float32():
    tokens = random_tokens(1, 128, 32768)
    model = load("configs/default.py", ["model.layers=4"]).model
    exact = dataclasses.replace(model, dtype="float32")
    params = jax.jit(Encoder(exact).init)(jax.random.key(0), tokens)
    expected, rough = (
        jax.jit(Encoder(m).apply)(params, tokens).astype(jnp.float32)
        for m in (exact, model)
    )
    assert jnp.linalg.norm(rough - expected) / jnp.linalg.norm(expected) < 2e-2


def test_the_second_segment_is_the_last_text():
    for row, expected in (
        ([4, 9, 5, 9, 9, 5, 0], [0, 0, 0, 1, 1, 1, 1]),  # A, B, padding
        ([4, 9, 5, 9, 5, 9, 5], [0, 0, 0, 0, 0, 1, 1]),  # two texts in A
        ([4, 9, 9, 5, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1]),  # A alone
        ([4, 9, 9, 5, 5, 0, 0], [0, 0, 0, 0, 1, 1, 1]),  # an empty B
    ):
        assert second_segment(jnp.array([row])).tolist() == [expected]


def test_the_encoder_can_be_imported_alone():
    """A functional encoder needs neither tokenizers nor what is above the model."""
    command = "import sys, cramjax.model.encoder; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    above = ("data", "training", "glue", "device", "checkpoints")
    loaded = done.stdout.splitlines()
    assert "cramjax.model.encoder" in loaded
    assert not {"tokenizers", *(f"cramjax.{name}" for name in above)} & set(loaded)

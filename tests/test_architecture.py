"""Every row of `configs/ablations/architecture.py`."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cramjax.config import load, module
from cramjax.errors import UserError
from cramjax.model.custom_vjp import cross_entropy
from cramjax.model.encoder import Encoder, MaskedLM
from cramjax.model.flops import predicted_per_row, train_flops_per_token
from cramjax.training.masking import mask_tokens
from cramjax.training.optimizer import decay_mask

architecture = module("ablations/architecture")

# Parameters, worked out by hand from the shapes.
WORD = 32768 * 768  # 25,165,824
ATTENTION = 4 * 768 * 768  # 2,359,296
GATED = 3 * 768 * 1536  # 3,538,944
NORM = 2 * 768  # scale and bias
LAYER = ATTENTION + GATED + 2 * NORM  # 5,901,312
CRAMMED = WORD + 1 + NORM + 16 * LAYER + NORM  # 1: the positions' scale
# Every bias of a gated layer but query, key, value: output, gate, value, output.
LINEAR_BIAS = 16 * (768 + 3072 + 768)


def by_layers(layers):
    return WORD + 1 + 2 * NORM + layers * LAYER


def by_shape(layers, width, ffn_width):
    layer = 4 * width**2 + width * ffn_width * 3 // 2 + 4 * width
    return 32768 * width + 1 + 4 * width + layers * layer


def bert(layers, width, ffn_width, norms):
    """Devlin et al.: every dense layer has a bias, the head a layer and a norm."""
    dense = 4 * (width * width + width) + 2 * width * ffn_width + ffn_width + width
    head = width * width + width + 2 * width + 32768
    return (32768 + 128) * width + layers * dense + norms * 2 * width + head


PARAMETERS = {
    "crammed-bert": 119_589_889,
    "deep-narrow-12": by_shape(12, 512, 2048),
    "deep-narrow-24": by_shape(24, 512, 2048),
    # Word, its norm, the way in and out; then as ever.
    "embedding-128": 32768 * 128 + 256 + 2 * 128 * 768 + 1 + 16 * LAYER + NORM,
    "ffn-every-2": CRAMMED - 8 * (GATED + NORM),
    "ffn-every-3": CRAMMED - 11 * (GATED + NORM),  # 5 of 16 keep theirs
    "ffn-every-4": CRAMMED - 12 * (GATED + NORM),
    "width-512": by_shape(16, 512, 2048),
    "width-1024": by_shape(16, 1024, 4096),
    **{f"layers-{n}": by_layers(n) for n in (4, 6, 8, 10, 12, 18, 24)},
    "recurrent-1-12": by_layers(1),
    "recurrent-2-6": by_layers(2),
    "recurrent-3-4": by_layers(3),
    "recurrent-4-3": by_layers(4),
    "tiny": by_shape(2, 128, 512),
    "mini": by_shape(4, 256, 1024),
    "large": by_shape(24, 1024, 4096),
    "izsak-large": bert(24, 1024, 4096, norms=49),  # no final one
    "original-bert": bert(12, 768, 3072, norms=25),
    "decoder-bias": CRAMMED + 32768,
    "eps-1e-6": CRAMMED,
    "learned-positions": CRAMMED - 1 + 128 * 768,
    "no-embedding-norm": CRAMMED - NORM,
    "no-final-norm": CRAMMED - NORM,
    "head-transform": CRAMMED + 768 * 768 + NORM,
    "qkv-bias": CRAMMED + 16 * 3 * 768,
    "linear-bias": CRAMMED + LINEAR_BIAS,
    "heads-4": CRAMMED,
    "rotary": CRAMMED,
    "post-norm": CRAMMED,
    "fourier": CRAMMED - 16 * 3 * 768 * 768,
    "plain-ffn": CRAMMED - 16 * GATED + 16 * 2 * 768 * 3072,
    "modern": CRAMMED - 1 - NORM + 768 * 768 + NORM,
    "rotary-only": CRAMMED - 1,
    "rms-norm": CRAMMED - 34 * 768,  # no biases in 2 * 16 + 2 norms
    "sinusoidal-positions": CRAMMED - 1,
    "no-positions": CRAMMED - 1,
    "relu": CRAMMED,
    "silu": CRAMMED,
    "relu-squared": CRAMMED,
    "sparse-last-layer": CRAMMED,
}


def row_config(row, *overrides):
    path = f"configs/ablations/architecture.py:{row}"
    return load(path, overrides)


def small_config(row):
    """A row at reduced width and depth; what makes it that row stays."""
    config = row_config(
        row,
        *(f"model.{o}" for o in ("width=32", "ffn_width=64", "heads=2")),
        *("model.vocab_size=64", "model.max_length=32", "model.dtype=float32"),
        *("micro_batch=8", "batch.sequences=8", "glue.max_length=32"),
        "batch.ramp_share=0",
    )
    model = config.model
    model = dataclasses.replace(
        model,
        layers=min(model.layers, max(2, model.ffn_every)),
        repeats=min(model.repeats, 2),
        embedding_width=min(model.embedding_width, 16),
    )
    return dataclasses.replace(config, model=model)


def test_the_hand_counts_cover_the_table():
    assert list(PARAMETERS) == list(architecture.ROWS)


# Rows of another size only go through the code of "crammed-bert" and a few others, and
# some changes are part of another row.
SIZES = ("deep-", "width-", "layers-", "heads-", "eps-", "tiny", "mini", "large")
SIZES += ("ffn-every-2", "ffn-every-4", "recurrent-1", "recurrent-2", "recurrent-4")
IN_BERT = ("qkv-bias", "linear-bias", "decoder-bias", "learned-pos", "plain-ffn")
IN_OTHERS = (*IN_BERT, "head-transform", "rotary-only", "silu")
ROWS = [
    pytest.param(
        row, marks=pytest.mark.slow if row.startswith(SIZES + IN_OTHERS) else ()
    )
    for row in architecture.ROWS
]


@pytest.mark.parametrize("row", ROWS)
def test_parameters_and_flops(row):
    """FLOPs against XLA's own count of the program, with few layers of full width."""
    config = row_config(row, "model.dtype=float32")
    length = config.model.max_length
    count = predicted_per_row(config.objective.mask_rate, length)
    tokens_BxL = jax.ShapeDtypeStruct((2, length), jnp.int32)
    positions_BxP = jax.ShapeDtypeStruct((2, count), jnp.int32)

    def init(model):
        return jax.eval_shape(
            MaskedLM(model).init, jax.random.key(0), tokens_BxL, positions_BxP
        )

    leaves = jax.tree.leaves(init(config.model))
    assert sum(math.prod(x.shape) for x in leaves) == PARAMETERS[row]
    layers = min(config.model.layers, max(2, config.model.ffn_every))
    model = dataclasses.replace(config.model, layers=layers)
    params = init(model)

    def loss_of(params, tokens, positions, targets):
        return cross_entropy(MaskedLM(model).apply(params, tokens, positions), targets)

    program = jax.jit(jax.grad(loss_of)).lower(
        params, tokens_BxL, positions_BxP, positions_BxP
    )
    per_token = program.cost_analysis()["flops"] / (2 * length)
    ours = train_flops_per_token(model, config.objective.mask_rate)
    assert per_token == pytest.approx(ours, rel=0.03)


@functools.cache  # some rows are the same at reduced size
def train(model):
    """Returns the losses and final parameters of 20 steps with Adam.

    Every line repeats one of two letters.
    """
    optimizer = optax.adam(1e-3)

    def loss_of(params, masked):
        logits_BxPxV = MaskedLM(model).apply(
            params, masked.tokens_BxL, masked.positions_BxP
        )
        return cross_entropy(logits_BxPxV, masked.targets_BxP)

    @jax.jit
    def step(params, state, key, tokens_BxL):
        masked = mask_tokens(
            key,
            tokens_BxL,
            mask_rate=0.25,
            vocab_size=model.vocab_size,
            mask_share=0.8,
            random_share=0.1,
        )
        loss, grads = jax.value_and_grad(loss_of)(params, masked)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    tokens_8x32 = np.zeros((8, 32), np.int32)
    params = jax.jit(MaskedLM(model).init)(
        jax.random.key(0), tokens_8x32, tokens_8x32[:, :1]
    )
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    trace = []
    for number in range(20):
        letters = rng.choice([10, 20], (8, 1))
        tokens_8x32 = np.broadcast_to(letters, (8, 32))
        params, state, loss = step(params, state, jax.random.key(number), tokens_8x32)
        trace.append(float(loss))
    return trace, params["params"]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains(row):
    trace, params = train(small_config(row).model)
    assert all(np.isfinite(trace))
    assert np.mean(trace[-3:]) < np.mean(trace[:3]) - 0.2
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    for path, decays in mask:
        name = ".".join(entry.key for entry in path)
        assert decays == (not name.endswith("bias") and "norm." not in name), name


@pytest.mark.parametrize("row", ROWS)
def test_padding_does_not_change_the_rest(row):
    model = small_config(row).model
    params = {"params": train(model)[1]}
    tokens = np.random.default_rng(0).integers(7, 64, (2, 16), np.int32)
    padded = np.pad(tokens, ((0, 0), (0, 8)), constant_values=9)
    mask = (np.arange(24) < 16).astype(np.int32)[None].repeat(2, 0)
    apply = jax.jit(Encoder(model).apply)
    plain = apply(params, tokens)
    with_padding = apply(params, padded, mask)
    np.testing.assert_allclose(with_padding[:, :16], plain, rtol=0, atol=1e-6)
    without_mask = apply(params, padded)
    assert np.abs(without_mask[:, :16] - plain).max() > 1e-3  # the mask does the work


def test_an_unknown_row_is_named():
    with pytest.raises(UserError, match="no row 'postnorm'; did you mean 'post-norm'"):
        row_config("postnorm")


def test_the_ramp_is_the_papers_300000_micro_batches():
    config = row_config("crammed-bert")
    micro_batches_a_day = 46431 * 86400 / (128 * 128)
    assert config.batch.ramp_share == pytest.approx(300_000 / micro_batches_a_day)

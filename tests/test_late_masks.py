"""`model.late_masks`: masks that enter after some layers (arXiv 2211.04898)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import programs, tiny_config

from cramjax import likelihood
from cramjax.config import load
from cramjax.errors import UserError
from cramjax.model.encoder import MaskedLM
from cramjax.model.flops import train_flops_by_part
from cramjax.model.rows import document_mask, needed_last
from cramjax.tokens import MASK, PAD, SEP

LENGTH = 12
POSITIONS = np.array([[5, 1, 8, 11], [0, 7, 2, 3]])
ALL_MASKS = ["objective.mask_share=1.0", "objective.random_share=0.0"]
SPARSE = "model.sparse_last_layer=True"


def make(tiny, **changes):
    return dataclasses.replace(
        tiny.model, layers=4, init_std=0.1, dtype="float32", **changes
    )


def batch(tiny):
    """Returns tokens with <mask> at the positions, and attention masks by name."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(8, tiny.model.vocab_size, (2, LENGTH))
    tokens[:, [4, 9]] = SEP
    documents = document_mask(tokens)
    np.put_along_axis(tokens, POSITIONS, MASK, axis=1)
    padding = np.arange(LENGTH) < np.array([[12], [9]])
    return tokens, {"none": None, "padding": padding, "documents": documents}


def reference(model, params, tokens, positions, mask):
    """Runs all layers on all tokens; a mask hides those that enter later."""
    bound = MaskedLM(dataclasses.replace(model, late_masks=0)).bind(params)
    kept = np.ones(tokens.shape, bool)
    np.put_along_axis(kept, positions, False, axis=1)
    if mask is None:
        mask = np.ones(tokens.shape, bool)
    mask = mask[:, None] if mask.ndim == 2 else mask
    entering = bound.embedding(tokens).reshape(-1, model.width)
    x = entering
    for index, layer in enumerate(bound.layers * model.repeats):
        if index == model.late_masks:
            x = jnp.where(kept.reshape(-1, 1), x, entering)
        early = index < model.late_masks
        x = layer(x, tokens.shape[1], mask & kept[:, None] if early else mask)
    hidden = bound.final_norm(x).reshape(*tokens.shape, model.width)
    return bound.logits(jnp.take_along_axis(hidden, positions[..., None], 1))


@pytest.mark.parametrize(
    ("mask", "changes"),
    [
        ("none", {"positions": "rotary"}),
        ("none", {"positions": "scaled_sinusoidal"}),
        ("padding", {"positions": "learned", "norm_placement": "post", "repeats": 2}),
        ("documents", {"positions": "rotary", "global_every": 2, "local_window": 2}),
    ],
    ids=["rotary", "sinusoidal", "post-repeated", "local-documents"],
)
def test_as_if_the_first_layers_could_not_see_masks(tiny, mask, changes):
    tokens, masks = batch(tiny)
    model = make(tiny, **{"late_masks": 2, "sparse_last_layer": True} | changes)
    params = jax.jit(MaskedLM(model).init)(jax.random.key(0), tokens, POSITIONS)

    def loss_of(function, params):
        logits = function(params, tokens, POSITIONS, masks[mask])
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 9]), logits

    def compute(function):
        return jax.jit(
            jax.value_and_grad(functools.partial(loss_of, function), has_aux=True)
        )(params)

    (_, expected), grads = compute(functools.partial(reference, model))
    (_, found), found_grads = compute(MaskedLM(model).apply)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for a, b in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    early = jax.jit(MaskedLM(dataclasses.replace(model, late_masks=0)).apply)
    assert abs(early(params, tokens, POSITIONS, masks[mask]) - found).max() > 1e-3


def test_predicted_positions_come_last():
    order = np.asarray(needed_last(POSITIONS, LENGTH))
    assert order[0].tolist() == [0, 2, 3, 4, 6, 7, 9, 10, 5, 1, 8, 11]
    assert (np.sort(order, axis=1) == np.arange(LENGTH)).all()


def test_the_layers_below_compute_nothing_at_masks(tiny):
    """The FLOPs of the formula, against hand counts and against XLA's own."""
    base = make(tiny, sparse_last_layer=True, positions="rotary")
    late = dataclasses.replace(base, late_masks=2)
    share, length = 1 / 3, LENGTH
    before, after = (train_flops_by_part(m, share, length) for m in (base, late))
    d, f, kept = base.width, base.ffn_width, 2 / 3
    saved = {
        "attention kernels": 2 * 24 * d * d * share,
        "attention products": 2 * 12 * length * d * (1 - kept**2),
        "feed-forward": 2 * 9 * d * f * share,
        "decoder": 0,
    }
    assert {k: before[k] - after[k] for k in before} == pytest.approx(saved)

    tokens, _ = batch(tiny)
    wide = {"width": 256, "heads": 2, "ffn_width": 1024}

    def count(model):
        model = dataclasses.replace(model, **wide)
        params = jax.eval_shape(
            MaskedLM(model).init, jax.random.key(0), tokens, POSITIONS
        )

        def loss_of(params):
            logits = MaskedLM(model).apply(params, tokens, POSITIONS)
            return jax.nn.logsumexp(logits, axis=-1).mean()

        counted = jax.jit(jax.grad(loss_of)).lower(params).cost_analysis()["flops"]
        formula = sum(train_flops_by_part(model, share, length).values())
        return counted / tokens.size, formula

    (counted, formula), (counted_late, formula_late) = count(base), count(late)
    assert counted_late / counted == pytest.approx(formula_late / formula, rel=0.01)
    assert counted_late == pytest.approx(formula_late, rel=0.04)


def test_a_mask_in_a_padded_row_is_scored_as_alone(tiny):
    """As word order and fill-mask call it: any P, padded rows."""
    model = make(tiny, late_masks=2, positions="rotary", sparse_last_layer=True)
    row = np.array([[SEP, 20, MASK, 30, MASK, 40, SEP]])
    places = np.array([[4, 2]])
    params = jax.jit(MaskedLM(model).init)(jax.random.key(0), row, places)["params"]
    padded = np.pad(row, ((0, 0), (0, 5)), constant_values=PAD)
    expected = likelihood.logits(model, params, row, places)
    found = likelihood.logits(model, params, padded, places)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    ids = [SEP, 20, 30, SEP]
    logits = [
        likelihood.logits(model, params, np.array([hidden]), np.array([[place]]))[0, 0]
        for place, hidden in ((1, [SEP, MASK, 30, SEP]), (2, [SEP, 20, MASK, SEP]))
    ]
    first, second = map(jax.nn.log_softmax, logits)
    [score] = likelihood.pseudo_log_likelihoods(model, params, [ids])
    assert score == pytest.approx(float(first[20] + second[30]), abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("", "model.late_masks is 1: must be 0, unless objective.mask_share is 1"),
        ("objective.final_mask_rate=0.3", "must be 0, unless objective.mask_share"),
        ("model.late_masks=2", "late_masks is 2: must be below model.layers * "),
        ("model.sparse_last_layer=False", "must be 0, unless model.sparse_last_layer"),
        ("objective.mask_rate=1", "objective.mask_rate is 1.0: must be small enough"),
        ("validation.mask_rate=0.99", "validation.mask_rate is 0.99: must be small"),
        (
            "model.attention=cudnn model.dtype=bfloat16 objective.mask_rate=0.4",
            "model.attention is 'cudnn': must be 'xla' or 'auto' for sequences of 19",
        ),
    ],
)
def test_what_cannot_be_is_one_line(overrides, message):
    given = ALL_MASKS if overrides else ()
    with pytest.raises(UserError) as error:
        load(
            "configs/small.py",
            ["model.late_masks=1", SPARSE, *given, *overrides.split()],
        )
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_few_updates_lower_the_loss(data_dir):
    tokens = jnp.asarray(np.random.default_rng(0).integers(8, 12, (4, 32)), jnp.int32)

    def losses(*overrides):
        config = tiny_config(data_dir, *ALL_MASKS, "batch.sequences=4", *overrides)
        init, micro_step = programs(config)
        state, found = init(), []
        for progress in np.linspace(0, 0.5, 12, dtype=np.float32):
            state, metrics = micro_step(state, tokens, progress)
            found.append(float(metrics["loss"]))
        return found

    off = losses(SPARSE)
    late = losses(SPARSE, "model.late_masks=1")
    assert late != off and late[-1] < late[0] - 0.1

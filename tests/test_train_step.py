import dataclasses
import re

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import programs, start

from cramjax.model.encoder import Encoder
from cramjax.model.rows import document_mask
from cramjax.tokens import SEP
from cramjax.training import loss_scale, train_step
from cramjax.training.optimizer import METHODS, ONCE_AN_UPDATE


def tiny_config(data_dir, *overrides):
    """One layer compiles faster than two."""
    return conftest.tiny_config(data_dir, "model.layers=1", *overrides)


@pytest.fixture(scope="module")
def started(tiny):
    """Returns fresh states, and the one micro-step."""
    init, micro_step = programs(tiny)
    return lambda: (init(), micro_step)


def tokens_of(config, rows, seed=0):
    shape = (rows, config.model.max_length)
    tokens = np.random.default_rng(seed).integers(7, config.model.vocab_size, shape)
    return tokens.astype(np.uint16)


def test_overfits_one_batch(data_dir):
    overrides = ("batch.sequences=4", "optimizer.learning_rate=0.02")
    config = conftest.tiny_config(data_dir, *overrides)
    state, micro_step = start(config)
    tokens = np.repeat(tokens_of(config, 4)[:, :1], 32, axis=1)  # a word a row
    losses = []
    for _ in range(150):
        state, metrics = micro_step(state, tokens, np.float32(0.5))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(256), abs=0.3)
    assert np.mean(losses[-5:]) < 0.1


def test_one_batch_of_8_equals_4_micro_batches_of_2(data_dir, monkeypatch):
    """With the same masks: accumulation is the mean over micro-batches."""

    def fixed_masks(key, tokens_BxL, **_):
        positions = jnp.tile(jnp.arange(0, 32, 4)[None], (tokens_BxL.shape[0], 1))
        targets = jnp.take_along_axis(tokens_BxL.astype(jnp.int32), positions, 1)
        return masked_batch(tokens_BxL, positions, targets)

    from cramjax.training.masking import MaskedBatch as masked_batch

    monkeypatch.setattr(train_step, "mask_tokens", fixed_masks)
    results = []
    for rows in (8, 2):
        config = tiny_config(
            data_dir, f"micro_batch={rows}", "batch.sequences=8", "batch.ramp_share=0.0"
        )
        state, micro_step = start(config)
        tokens = tokens_of(config, 8)
        for i in range(0, 8, rows):
            before = state.params["embedding"]["word"].copy()
            state, metrics = micro_step(state, tokens[i : i + rows], np.float32(0.3))
            assert bool(metrics["updated"]) == (i + rows == 8)
            same = bool((before == state.params["embedding"]["word"]).all())
            assert same == (i + rows < 8)
        results.append((metrics, state.params))
    np.testing.assert_allclose(
        results[0][0]["grad_norm"], results[1][0]["grad_norm"], rtol=1e-5
    )
    for one, four in zip(*(jax.tree.leaves(r[1]) for r in results), strict=True):
        # AdamW's first step is sign(g): compare where the gradient is not noise.
        assert np.mean(np.abs(one - four) > 1e-5) < 0.01


def test_the_whole_ramp_compiles_once_and_k_is_fixed_while_it_accumulates(data_dir):
    config = tiny_config(data_dir, "batch.sequences=20")  # k up to 5
    state, micro_step = start(config)
    history = []
    for i in range(60):
        state, metrics = micro_step(state, tokens_of(config, 4, i), np.float32(i / 60))
        history.append((int(metrics["accumulate"]), bool(metrics["updated"])))
    assert micro_step._cache_size() == 1
    ks, seen = [], []
    for k, updated in history:
        seen.append(k)
        if updated:
            assert seen == [k] * k
            ks.append(k)
            seen = []
    assert ks == sorted(ks) and ks[0] == 1 and ks[-1] == 5


def test_randomness_depends_on_seed_and_step_alone(tiny, started):
    tokens = tokens_of(tiny, 4)
    state, micro_step = started()
    first = micro_step(state, tokens, np.float32(0))[1]["loss"]
    state, _ = started()
    assert micro_step(state, tokens, np.float32(0.7))[1]["loss"] == first
    _, other_step = programs(dataclasses.replace(tiny, seed=2))
    state, _ = started()
    assert other_step(state, tokens, np.float32(0))[1]["loss"] != first


def test_a_micro_batch_with_a_bad_number_is_skipped_and_counted(tiny, started):
    state, micro_step = started()
    broken = jax.tree.map(jnp.copy, state)
    broken.params["final_norm"]["scale"] = broken.params["final_norm"]["scale"] * np.nan
    before = jax.tree.map(np.asarray, broken.params)
    after, metrics = micro_step(broken, tokens_of(tiny, 4), np.float32(0.5))
    assert (int(metrics["skipped"]), bool(metrics["finite"])) == (1, False)
    assert int(metrics["bad_in_a_row"]) == 1
    assert int(after.opt_state.mini_step) == 0
    assert int(after.step) == 1
    for a, b in zip(
        jax.tree.leaves(before), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_float16_scales_its_loss(data_dir):
    config = tiny_config(data_dir, "model.dtype=float16", "batch.sequences=4")
    state, micro_step = start(config)
    assert state.loss_scale == loss_scale.START
    for i in range(5):
        state, metrics = micro_step(state, tokens_of(config, 4, i), np.float32(0.5))
    scale = float(state.loss_scale)
    assert scale <= loss_scale.START
    assert int(state.skipped) == 0  # what finds the scale is not counted
    assert np.isfinite(metrics["loss"])
    exact = dataclasses.replace(
        config, model=dataclasses.replace(config.model, dtype="float32")
    )
    full, full_step = start(exact)
    full, full_metrics = full_step(full, tokens_of(config, 4, 0), np.float32(0.5))
    state, micro_step = start(config)
    state, metrics = micro_step(
        dataclasses.replace(state, loss_scale=jnp.float32(1024)),
        tokens_of(config, 4, 0),
        np.float32(0.5),
    )
    assert int(state.skipped) == 0
    np.testing.assert_allclose(  # unscaled before it is clipped and logged
        metrics["grad_norm"], full_metrics["grad_norm"], rtol=1e-2
    )


def test_an_overflow_halves_the_scale_and_a_long_calm_doubles_it(data_dir, monkeypatch):
    """At the lowest scale, what is not finite is counted."""
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    config = tiny_config(data_dir, "model.dtype=float16")
    state, micro_step = start(config)
    state = dataclasses.replace(state, loss_scale=jnp.float32(2.0**40))
    state, _ = micro_step(state, tokens_of(config, 4), np.float32(0.5))
    assert (float(state.loss_scale), int(state.skipped)) == (2.0**39, 0)
    state = dataclasses.replace(state, loss_scale=jnp.float32(64))
    for _ in range(3):
        state, _ = micro_step(state, tokens_of(config, 4), np.float32(0.5))
    assert float(state.loss_scale) == 128

    lowest = jnp.float32(loss_scale.MIN)
    state = dataclasses.replace(state, loss_scale=lowest)
    state.params["final_norm"]["scale"] = state.params["final_norm"]["scale"] * np.nan
    for expected in (1, 2):
        state, metrics = micro_step(state, tokens_of(config, 4), np.float32(0.5))
        assert int(metrics["skipped"]) == int(metrics["bad_in_a_row"]) == expected


def test_the_rate_scale_scales_the_rate(tiny, started):
    state, micro_step = started()
    half = dataclasses.replace(
        jax.tree.map(jnp.copy, state), rate_scale=jnp.float32(0.5)
    )
    tokens = tokens_of(tiny, 4)
    rates = [
        float(micro_step(s, tokens, np.float32(0))[1]["learning_rate"])
        for s in (state, half)
    ]
    assert rates[1] == rates[0] / 2 > 0


# All of them go down a hill in test_optimizer.
IN_THE_STEP = [
    pytest.param(name, marks=() if name == "muon" else pytest.mark.slow)
    for name in METHODS
]


@pytest.mark.parametrize("name", IN_THE_STEP)
def test_every_optimizer_trains(data_dir, name):
    """Accumulating, with two micro-batches an update."""
    rate = {"sgd": 0.5, "adafactor": 0.01}.get(name, 0.005)
    config = tiny_config(
        data_dir,
        *(f"optimizer.name={name}", f"optimizer.learning_rate={rate}"),
        *("batch.sequences=8", "batch.ramp_share=0"),
    )
    state, micro_step = start(config)
    tokens = np.repeat(tokens_of(config, 4)[:, :1], 32, axis=1)  # a word a row
    losses = []
    for _ in range(40):
        state, metrics = micro_step(state, tokens, np.float32(0.75))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3


def test_separate_documents_do_not_see_each_other(data_dir):
    config = tiny_config(data_dir, "objective.separate_documents=True")
    tokens = tokens_of(config, 2).astype(np.int32)
    tokens[0, [9, 20]] = SEP
    mask = np.asarray(document_mask(tokens))
    assert mask[0, 9, 0] and not mask[0, 9, 10]  # <sep> ends its document
    assert mask[0, 10, 20] and not mask[0, 10, 21]
    assert mask[1].all()
    encoder = Encoder(config.model)
    params = encoder.init(jax.random.key(0), tokens)
    other = tokens.copy()
    other[0, 21:] = 99
    one, two = (encoder.apply(params, t, document_mask(t)) for t in (tokens, other))
    np.testing.assert_array_equal(one[0, :21], two[0, :21])
    assert np.abs(one[0, 21:] - two[0, 21:]).max() > 1e-3

    plain = tiny_config(data_dir)
    first = [
        float(start(c)[1](start(c)[0], tokens, np.float32(0))[1]["loss"])
        for c in (config, plain)
    ]
    assert first[0] != first[1]  # the training step uses it


def test_a_falling_masking_rate_compiles_once_and_weighs_what_is_masked(data_dir):
    falling = tiny_config(
        data_dir, "objective.mask_rate=0.5", "objective.final_mask_rate=0.25"
    )
    constant = [
        tiny_config(data_dir, f"objective.mask_rate={rate}") for rate in (0.5, 0.25)
    ]
    tokens = np.repeat(tokens_of(falling, 4)[:, :1], 32, axis=1)
    state, micro_step = start(falling)
    losses = []
    for progress in (0.0, 0.5, 1.0):
        fresh = jax.tree.map(jnp.copy, state)
        losses.append(float(micro_step(fresh, tokens, np.float32(progress))[1]["loss"]))
    assert micro_step._cache_size() == 1
    ends = [
        float(start(c)[1](start(c)[0], tokens, np.float32(0))[1]["loss"])
        for c in constant
    ]
    assert losses[0] == pytest.approx(ends[0], rel=1e-6)
    assert losses[0] != losses[1] != losses[2]
    # At the end 8 of 32 positions are masked; the loss is their mean, not half of it.
    assert losses[2] == pytest.approx(ends[1], rel=0.05)


def test_the_averages_follow_the_updates(tiny, started):
    """EMA of 0.9, LAWA of every third update and two of them."""
    state, micro_step = started()
    seen = []
    for i in range(30):
        state, metrics = micro_step(state, tokens_of(tiny, 4, i), np.float32(i / 40))
        if metrics["updated"]:
            seen.append(np.asarray(state.params["final_norm"]["scale"]))
    assert 8 < len(seen) < 25
    weights = 0.9 ** np.arange(len(seen))[::-1]
    expected = {
        "pretrained": seen[-1],
        "ema": np.average(seen, axis=0, weights=weights),
        "lawa": np.mean(seen[2::3][-2:], axis=0),
    }
    found = train_step.named_params(tiny, state)
    assert found.keys() == expected.keys()
    for name, tree in found.items():
        np.testing.assert_allclose(
            tree["final_norm"]["scale"], expected[name], rtol=1e-5
        )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_the_end_of_an_accumulation_runs_the_optimizer(data_dir, name):
    """Otherwise each micro-step would read and write its state."""
    config = tiny_config(data_dir, f"optimizer.name={name}")
    program = train_step.build(config).lowered().compile().as_text()
    kept = rf' conditional\(.*op_name="jit\(micro_step\)/{ONCE_AN_UPDATE}/cond"'
    assert len(re.findall(kept, program)) == 1


def test_all_mask(data_dir, monkeypatch):
    given = {}

    def note(*args, **kwargs):
        given.update(kwargs)
        return mask_tokens(*args, **kwargs)

    from cramjax.training.masking import mask_tokens

    monkeypatch.setattr(train_step, "mask_tokens", note)
    config = tiny_config(
        data_dir, "objective.mask_share=1.0", "objective.random_share=0.0"
    )
    state, micro_step = start(config)
    micro_step(state, tokens_of(config, 4), np.float32(0))
    assert (given["mask_share"], given["random_share"]) == (1.0, 0.0)

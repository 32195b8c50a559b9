import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import start, tiny_config

from cramjax.model.encoder import MaskedLM
from cramjax.tokens import MASK, SEP
from cramjax.training import train_step, validation
from cramjax.training.masking import mask_tokens


def masked(seed=0, rows=64, length=128, rate=0.25, vocab=1000):
    tokens = np.random.default_rng(0).integers(7, vocab, (rows, length))
    out = mask_tokens(
        jax.random.key(seed),
        tokens.astype(np.uint16),
        mask_rate=rate,
        vocab_size=vocab,
    )
    return tokens, jax.tree.map(np.asarray, out)


def test_every_row_has_exactly_p_positions_split_80_10_10():
    tokens, out = masked()
    assert out.positions_BxP.shape == (64, 32)
    for row in range(64):
        positions = out.positions_BxP[row]
        assert len(set(positions)) == 32
        np.testing.assert_array_equal(out.targets_BxP[row], tokens[row, positions])
        new = out.tokens_BxL[row, positions]
        assert (new[:26] == MASK).all()  # round(0.8 * 32)
        assert (new[29:] == tokens[row, positions[29:]]).all()  # from round(0.9 * 32)
        untouched = np.setdiff1d(np.arange(128), positions)
        assert (out.tokens_BxL[row, untouched] == tokens[row, untouched]).all()
    random = np.take_along_axis(out.tokens_BxL, out.positions_BxP[:, 26:29], 1)
    kept = np.take_along_axis(tokens, out.positions_BxP[:, 26:29], 1)
    assert (random != kept).mean() > 0.97
    assert (random[:, 0] == MASK).mean() < 0.1  # a random token, not the 27th mask
    assert random.max() > 900 and random.min() < 100  # over the whole vocabulary


def test_all_positions_are_equally_likely():
    _, out = masked(rows=4000, length=16)
    share = np.bincount(out.positions_BxP.ravel(), minlength=16) / 4000
    np.testing.assert_allclose(share, 0.25, atol=0.03)
    # ... also among those replaced by <mask>: the order within P is random.
    first = np.bincount(out.positions_BxP[:, 0], minlength=16) / 4000
    np.testing.assert_allclose(first, 1 / 16, atol=0.02)


def test_all_mask():
    tokens = np.full((3, 32), 9)
    out = mask_tokens(
        jax.random.key(0),
        tokens,
        mask_rate=0.15,
        vocab_size=100,
        mask_share=1.0,
        random_share=0.0,
    )
    assert ((out.tokens_BxL == MASK).sum(axis=1) == 5).all()
    assert (out.targets_BxP == 9).all()


def test_a_masking_rate_that_is_traced_equals_the_fixed_one():
    """The shapes are those of the highest rate, the rest weighs nothing."""
    tokens, most = masked(length=128, rate=0.25)
    apply = jax.jit(
        lambda predicted: mask_tokens(
            jax.random.key(0),
            tokens.astype(np.uint16),
            mask_rate=0.25,
            vocab_size=1000,
            predicted_count=predicted,
        )
    )
    for predicted in (19, 32):
        out = jax.tree.map(np.asarray, apply(np.float32(predicted)))
        assert out.positions_BxP.shape == (64, 32)
        np.testing.assert_array_equal(out.positions_BxP, most.positions_BxP)
        assert (out.weights_BxP == (np.arange(32) < predicted)).all()
        first = out.positions_BxP[:, :predicted]
        new = np.take_along_axis(out.tokens_BxL, first, 1)
        old = np.take_along_axis(tokens, first, 1)
        masks, replaced = round(0.8 * predicted), round(0.9 * predicted)
        assert (new[:, :masks] == MASK).all()
        assert (new[:, masks:replaced] != old[:, masks:replaced]).mean() > 0.95
        assert (new[:, replaced:] == old[:, replaced:]).all()
        changed = (out.tokens_BxL != tokens).sum(axis=1)
        assert (changed <= replaced).all()
    np.testing.assert_array_equal(out.tokens_BxL, most.tokens_BxL)


def test_randomness_depends_on_the_key_alone():
    _, one = masked(seed=1)
    _, same = masked(seed=1)
    _, other = masked(seed=2)
    np.testing.assert_array_equal(one.tokens_BxL, same.tokens_BxL)
    assert (one.positions_BxP != other.positions_BxP).any()


class ReadsTheEdges(MaskedLM):
    """Answers <sep> where its mask says that a document ends, else it has no idea."""

    def __call__(self, tokens_BxL, positions_BxP, mask_BxLxM):
        logits_BxPxV = super().__call__(tokens_BxL, positions_BxP, mask_BxLxM)
        next_BxL = jnp.diagonal(mask_BxLxM[:, :, 1:], axis1=1, axis2=2)
        ends_BxL = jnp.pad(~next_BxL, ((0, 0), (0, 1)))
        ends_BxPx1 = jnp.take_along_axis(ends_BxL, positions_BxP, 1)[..., None]
        sep_1x1xV = (jnp.arange(logits_BxPxV.shape[2]) == SEP)[None, None]
        return 0 * logits_BxPxV + 9.0 * (ends_BxPx1 & sep_1x1xV)


@pytest.fixture
def separate(data_dir):
    return tiny_config(
        data_dir,
        *("objective.separate_documents=True", "micro_batch=8"),
        *("batch.sequences=8", "validation.mask_rate=0.25"),
    )


@pytest.fixture
def text_BxL():
    """Random words, 3 of 10 of them <sep>; the last row has too few others."""
    rng = np.random.default_rng(0)
    tokens_BxL = rng.integers(7, 256, (8, 32))
    tokens_BxL[rng.random((8, 32)) < 0.3] = SEP
    tokens_BxL[7] = [9] * 3 + [SEP] * 29
    return tokens_BxL.astype(np.uint16)


def test_the_mask_of_separate_documents_gives_no_answer_away_in_training(
    separate, text_BxL, monkeypatch
):
    state, _ = start(separate)
    monkeypatch.setattr(train_step, "MaskedLM", ReadsTheEdges)
    micro_step = train_step.make_micro_step(separate, train_step.make_mesh())
    for _ in range(3):
        state, metrics = micro_step(state, text_BxL, np.float32(0.5))
        assert float(metrics["loss"]) == pytest.approx(np.log(256), rel=1e-6)


def test_the_mask_of_separate_documents_gives_no_answer_away_in_the_held_out_loss(
    separate, text_BxL, corpus, monkeypatch
):
    class Blocks:
        def __len__(self):
            return 8

        def take(self, rows_N):
            return text_BxL[rows_N]

    params = start(separate)[0].params
    monkeypatch.setattr(validation, "MaskedLM", ReadsTheEdges)
    text = types.SimpleNamespace(held_out=Blocks(), tokenizer=corpus.tokenizer)
    scores = validation.held_out(separate, params, text)
    assert scores["loss"] == pytest.approx(np.log(256), rel=1e-6)
    assert scores["accuracy"] == 0  # its answer elsewhere is <pad>, not in this text


@pytest.mark.parametrize("predicted", [None, 4])
def test_a_token_that_is_never_predicted(text_BxL, predicted):
    """P positions among the others, all equally likely; where these do not suffice, the
    rest weighs nothing."""
    rows_NxL = np.repeat(text_BxL, 500, axis=0)
    out = mask_tokens(
        jax.random.key(0),
        rows_NxL,
        mask_rate=0.25,
        vocab_size=256,
        unpredictable_ids=(SEP,),
        predicted_count=predicted,
    )
    expected_NxP = np.ones((4000, 8), bool)
    expected_NxP[3500:, 3:] = False
    expected_NxP[:, predicted or 8 :] = False
    np.testing.assert_array_equal(out.weights_BxP, expected_NxP)
    assert (np.asarray(out.targets_BxP)[expected_NxP] != SEP).all()
    counts_L = np.bincount(out.positions_BxP[:500].ravel(), minlength=32)
    others_L = text_BxL[0] != SEP
    assert (counts_L[~others_L] == 0).all()
    np.testing.assert_allclose(counts_L[others_L] / 500, 8 / others_L.sum(), atol=0.12)

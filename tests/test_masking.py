import jax
import numpy as np

from cramjax.training.masking import mask_tokens

MASK = 6


def masked(seed=0, rows=64, length=128, rate=0.25, vocab=1000):
    tokens = np.random.default_rng(0).integers(7, vocab, (rows, length))
    out = mask_tokens(
        jax.random.key(seed),
        tokens.astype(np.uint16),
        mask_rate=rate,
        mask_id=MASK,
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
        mask_id=MASK,
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
            mask_id=MASK,
            vocab_size=1000,
            predicted=predicted,
        )
    )
    for predicted in (19, 32):
        out = jax.tree.map(np.asarray, apply(np.float32(predicted)))
        assert out.positions_BxP.shape == (64, 32)
        np.testing.assert_array_equal(out.positions_BxP, most.positions_BxP)
        assert (out.weights_P == (np.arange(32) < predicted)).all()
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

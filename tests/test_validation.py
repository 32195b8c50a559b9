import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import start, tiny_config

from cramjax.model.encoder import MaskedLM
from cramjax.tokens import MASK
from cramjax.training.validation import held_out, score, token_bytes


@pytest.fixture(scope="module")
def params(tiny):
    return start(tiny)[0].params


@pytest.fixture(scope="module")
def everything(data_dir):
    """Six blocks, every position masked: then the answer can be worked out."""
    return tiny_config(data_dir, "validation.mask_rate=1.0")


@pytest.fixture(scope="module")
def scored_BxL(corpus):
    blocks = corpus.held_out
    return blocks.take(len(blocks) * np.arange(6) // 6).astype(np.int32)


def test_a_model_that_knows_nothing(everything, corpus, params, scored_BxL):
    scores = held_out(everything, jax.tree.map(jnp.zeros_like, params), corpus)
    assert scores["loss"] == pytest.approx(np.log(256), rel=1e-6)
    assert scores["accuracy"] == (scored_BxL == 0).mean()  # the first of equals
    words = [corpus.tokenizer.id_to_token(int(i)) for i in scored_BxL.ravel()]
    text_bytes = sum(
        0 if word.startswith("<") and len(word) > 1 else len(word.replace("##", ""))
        for word in words
    )
    assert scores["bits_per_byte"] == pytest.approx(6 * 32 * 8 / text_bytes)


def test_what_is_masked_is_not_given_away(everything, corpus, params, scored_BxL):
    logits_BxLxV = MaskedLM(everything.model).apply(
        {"params": params},
        jnp.full_like(scored_BxL, MASK),
        jnp.broadcast_to(jnp.arange(32), (6, 32)),
    )
    log_probs = jax.nn.log_softmax(logits_BxLxV)
    expected = -np.take_along_axis(np.asarray(log_probs), scored_BxL[..., None], -1)
    loss = held_out(everything, params, corpus)["loss"]
    assert loss == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize("change", [{"seed": 9}, {"micro_batch": 5}])
def test_every_run_is_asked_the_same(tiny, corpus, params, change):
    """Six blocks in batches of 4 or 5: the last one is filled up, not counted."""
    expected = held_out(tiny, params, corpus)
    scores = held_out(dataclasses.replace(tiny, **change), params, corpus)
    assert scores == pytest.approx(expected, rel=1e-6)


def test_the_scored_blocks_are_spread_over_all_held_out_ones(tiny, corpus, params):
    """Of two sources of 20 blocks, stored one after the other, six blocks."""

    class Blocks:
        asked = []

        def __len__(self):
            return 40

        def take(self, rows_N):
            self.asked.extend(rows_N)
            return corpus.held_out.take(rows_N % len(corpus.held_out))

    blocks = Blocks()
    both = types.SimpleNamespace(held_out=blocks, tokenizer=corpus.tokenizer)
    loss = held_out(tiny, params, both)["loss"]
    scored = set(blocks.asked)  # the last batch is filled up
    assert len(scored) == 6 and sum(block < 20 for block in scored) == 3
    every = dataclasses.replace(
        tiny, validation=dataclasses.replace(tiny.validation, max_blocks=1000)
    )
    blocks.asked.clear()
    assert held_out(every, params, both)["loss"] != loss
    assert set(blocks.asked) == set(range(40))


def test_averages_are_scored_beside_the_weights(tiny, corpus, params):
    nothing = jax.tree.map(jnp.zeros_like, params)
    scores = score(tiny, {"pretrained": params, "ema": nothing}, corpus)
    assert scores["averages"] == {"ema": pytest.approx(np.log(256))}
    assert scores["loss"] == held_out(tiny, params, corpus)["loss"]


def test_the_bytes_of_a_token(corpus):
    bytes_V = token_bytes(corpus.tokenizer)
    assert (bytes_V[:7] == 0).all() and (bytes_V[7:] > 0).all()
    vocabulary = corpus.tokenizer.get_vocab()
    for word in ("e", "##e", "the"):
        assert bytes_V[vocabulary[word]] == len(word.removeprefix("##"))

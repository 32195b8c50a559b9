import collections
import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from conftest import start, tiny_config

from cramjax import likelihood, word_order
from cramjax.data.corpus import Corpus
from cramjax.data.prepare import prepare
from cramjax.study import Study, page
from cramjax.tokens import CLS, SEP, SPECIAL_TOKENS


@pytest.fixture(scope="module")
def config(data_dir):
    """Whole words are needed for sentences that fit."""
    return tiny_config(data_dir, "model.vocab_size=4096")


@pytest.fixture(scope="module")
def books(config) -> Corpus:
    return prepare(config)


def as_text(tokens) -> str:
    return f" {' '.join(map(str, tokens))} "


def held_out_documents(corpus: Corpus) -> list[str]:
    blocks = corpus.held_out
    tokens = blocks.take(np.arange(len(blocks))).ravel()
    ends = np.flatnonzero(tokens == SEP)
    return [as_text(piece) for piece in np.split(tokens, ends + 1)]


def test_pairs_are_one_swap_apart_and_from_held_out_text(books):
    pairs = word_order.make_pairs(books, 30, 400)
    assert len(pairs) == 400
    held_out = held_out_documents(books)
    decode = books.tokenizer.decode
    for whole, swapped in pairs:
        assert len(whole) <= 30
        assert min(whole) >= len(SPECIAL_TOKENS)
        assert any(as_text(whole) in text for text in held_out)
        a, b = (re.findall(r"\w+|[^\w\s]", decode(ids)) for ids in (whole, swapped))
        differing = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        first, second = differing
        assert second == first + 1
        assert a[first] != a[second]
        assert [a[first], a[second]] == [b[second], b[first]]
        assert decode(whole).rstrip("\"'”’)]")[-1] in ".!?"
        assert a[first].isalnum() and a[second].isalnum()
    # Spread over the held-out text, and the same for every run.
    places = [
        number
        for whole, _ in pairs
        for number, text in enumerate(held_out)
        if as_text(whole) in text
    ]
    assert set(places) >= set(range(len(held_out) - 1))
    assert pairs == word_order.make_pairs(books, 30, 400)
    assert len(word_order.make_pairs(books, 30, 7)) == 7


def test_bigrams_are_those_of_a_brute_force_count(books, monkeypatch):
    monkeypatch.setattr(word_order, "TRAIN_STRETCH", 1 << 30)  # all of it, at once
    sentences = [s for pair in word_order.make_pairs(books, 30, 5) for s in pair]
    tokens = books.train.take(np.arange(len(books.train))).ravel().tolist()
    unigrams = collections.Counter(tokens)
    bigrams = collections.Counter(zip(tokens[:-1], tokens[1:], strict=True))

    def probability(token):
        return (unigrams[token] + 1) / (len(tokens) + 4096)

    expected = [
        np.log(probability(sentence[0]))
        + sum(
            np.log(
                (bigrams[a, b] + word_order.PRIOR * probability(b))
                / (unigrams[a] + word_order.PRIOR)
            )
            for a, b in zip(sentence[:-1], sentence[1:], strict=True)
        )
        for sentence in sentences
    ]
    scores_N = word_order.bigram_log_likelihoods(books.train, sentences, 4096)
    np.testing.assert_allclose(scores_N, expected, rtol=1e-12)


def test_what_is_read_is_bounded_and_spread(books):
    blocks = books.train
    size = 4096
    some = list(word_order._stretches(blocks, 5 * size, size))
    assert [len(tokens_N) for tokens_N in some[:4]] == [size] * 4
    assert len(some) == 5
    last = blocks.take(np.array([len(blocks) - 1]))[0]
    np.testing.assert_array_equal(some[-1][-blocks.length :], last)
    everything = np.concatenate(list(word_order._stretches(blocks, 10**9, size)))
    assert everything.size == len(blocks) * blocks.length


@pytest.mark.parametrize("cls", [False, True])
def test_one_that_knows_has_100_percent_and_a_constant_one_50(
    config, books, monkeypatch, cls
):
    monkeypatch.setattr(word_order, "PAIRS", 400)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cls=cls))
    originals = {tuple(whole) for whole, _ in word_order.make_pairs(books, 30, 400)}

    def knows(model, params, rows, **_):
        assert {row[0] for row in rows} == {CLS if cls else SEP}
        assert {row[-1] for row in rows} == {SEP}
        return np.array([float(tuple(row[1:-1]) in originals) for row in rows])

    monkeypatch.setattr(likelihood, "pseudo_log_likelihoods", knows)
    found = word_order.score(config, None, books)
    assert (found["model"], found["pairs"]) == (100.0, 400)
    assert 80 < found["bigram"] < 100
    monkeypatch.undo()
    monkeypatch.setattr(word_order, "PAIRS", 400)
    nothing = jax.tree.map(np.zeros_like, start(config)[0].params)
    assert word_order.score(config, nothing, books)["model"] == 50.0


def test_a_closing_quote_belongs_to_no_sentence():
    text = ["", "Go", ".", '"', "He", "left", '."', "(", "Why", "?", ")", "Now"]
    words = [(word, [i + 10 if word else SEP]) for i, word in enumerate(text)]
    sentences = list(word_order._sentences(words))
    assert [[word for word, _ in sentence] for sentence in sentences] == [
        ["Go", "."],
        ["He", "left", '."'],
        ["Why", "?"],
    ]


def test_too_few_sentences_are_left_out(tiny, corpus, finished):
    """Tests score few, see `few_pairs`; the report of such a run says so."""
    assert word_order.score(tiny, None, corpus) is None
    summary = json.loads((finished[0] / "pretrain.json").read_text())
    assert summary["word_order"] is None
    report = (finished[0] / "report.md").read_text()
    assert "Word order: not scored, for want of 50 held-out sentences of 6" in report


def test_the_line_has_an_interval_and_both_baselines():
    line = word_order.line({"model": 90.5, "bigram": 94.0, "pairs": 400})
    assert line.startswith("word order: the model finds 90.5 % (+-2.9) of 400 held-out")
    assert line.endswith("swapped (bigram model 94.0 %, chance 50 %)")


def test_a_study_lists_word_order_and_a_dash_where_it_is_not_known():
    def run(**more):
        done = {"held_out_loss": 1.0, "tokens": 10, "averages": {}}
        return {0: done | {"model_flops": 1e9, "updates": 1} | more}

    study = Study("small", (), {"new": (), "few": (), "old": ()}, (0,))
    scored = {"model": 91.25, "bigram": 80.0, "pairs": 400}
    results = {
        "new": run(word_order=scored),
        "few": run(word_order=None),
        "old": run(),
    }
    cells = [line.split(" | ")[-3] for line in page(study, results).splitlines()[2:]]
    assert cells == ["91.2 % (80.0 %)", "-", "-"]

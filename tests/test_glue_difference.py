import numpy as np
import pytest
from scipy import stats

from cramjax.glue import scores, tables
from cramjax.glue.scores import differences, interval
from cramjax.page import to_markdown


@pytest.fixture(autouse=True)
def draws(few_draws, monkeypatch):
    monkeypatch.setattr(scores, "DRAWS", 300)


def test_equal_predictions_do_not_differ():
    labels = np.random.default_rng(0).integers(0, 2, 50)
    same = np.stack([labels, 1 - labels])
    expected = {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert interval("accuracy", labels, same, same) == expected


def test_of_one_trial_it_is_the_textbooks_interval():
    """Paired differences of accuracy: their mean, and 1.96 standard errors of it."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 400)
    first = np.where(generator.random(400) < 0.9, labels, 1 - labels)
    second = np.where(generator.random(400) < 0.7, labels, 1 - labels)
    gains = 100.0 * ((first == labels) - 1.0 * (second == labels))
    found = interval("accuracy", labels, first[None], second[None])
    assert found["difference"] == pytest.approx(gains.mean())
    error = stats.sem(gains) * stats.norm.ppf(0.975)
    assert found["low"] == pytest.approx(gains.mean() - error, abs=0.3 * error)
    assert found["high"] == pytest.approx(gains.mean() + error, abs=0.3 * error)


def test_trials_that_disagree_make_it_wider():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 200)
    good = np.where(generator.random((2, 200)) < 0.9, labels, 1 - labels)
    bad = np.where(generator.random((2, 200)) < 0.6, labels, 1 - labels)
    mixed = np.stack([good[0], bad[0]])
    steady = interval("accuracy", labels, good, bad)
    unsteady = interval("accuracy", labels, mixed, bad)
    width = steady["high"] - steady["low"]
    assert unsteady["high"] - unsteady["low"] > 2 * width
    assert unsteady["low"] < 5


def test_between_reads_the_predictions_of_the_best_rates(tmp_path):
    labels = np.arange(40) % 2
    entry = {"title": "RTE", "metric": "accuracy", "starts": {}}
    for start, right in (("pretrained", 36), ("random", 20)):
        predictions = np.where(np.arange(40) < right, labels, 1 - labels)
        for rate, rows in ((0.1, 1 - labels), (0.2, predictions)):
            scores.save_predictions(
                tmp_path,
                "rte",
                start,
                rate,
                labels_N=labels,
                predictions_TxN=rows[None],
            )
        entry["starts"][start] = {"best_rate": 0.2}
    alone = {"title": "CoLA", "metric": "matthews", "starts": {"random": {}}}
    results = {"rte": entry, "cola": alone}
    found = differences(results, tmp_path, "pretrained", "random")
    assert list(found) == ["rte"]
    assert found["rte"]["difference"] == pytest.approx(40.0)
    assert 20 < found["rte"]["low"] < 40 < found["rte"]["high"] < 60
    again = differences(results, tmp_path, "pretrained", "random")
    assert again == found
    blocks = tables.differences_table(results, {"pretrained - random": found}, "")
    text = to_markdown(blocks)
    assert "| RTE | accuracy | +40.0 (+" in text and "| CoLA | matthews | - |" in text
    assert tables.differences_table(results, {}, "") == []

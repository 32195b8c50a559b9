"""The bag-of-words baseline: on tasks whose answer is known, and in the reports."""

import dataclasses
import json

import numpy as np
import pytest
from fake_glue import evaluated, untrained

from cramjax import report
from cramjax.glue import bag_of_words, data, evaluate


def with_glue(config, **changes):
    glue = dataclasses.replace(config.glue, **changes)
    return dataclasses.replace(config, glue=glue)


def rows(texts, labels, dtype=np.int32):
    return data.Rows(texts, np.array(labels, dtype))


def test_classes_with_words_of_their_own_are_all_told_apart():
    train = rows(
        [(f"{'good' if i % 2 else 'bad'} film {i}",) for i in range(40)], [0, 1] * 20
    )
    dev = rows([("a good one",), ("a bad one",)], [1, 0])
    assert bag_of_words.predict(train, {"dev": dev}, False)["dev"].tolist() == [1, 0]


def test_pairs_of_words_count():
    """Which of two words comes first is all that differs."""
    train = rows([("dog bites man",), ("man bites dog",)] * 20, [0, 1] * 20)
    found = bag_of_words.predict(train, {"dev": train}, False)["dev"]
    assert found.tolist() == train.labels_N.tolist()


def test_each_text_has_features_of_its_own():
    train = rows([("yes", "no"), ("no", "yes")] * 20, [0, 1] * 20)
    found = bag_of_words.predict(train, {"dev": train}, False)["dev"]
    assert found.tolist() == train.labels_N.tolist()


def test_a_text_without_words_has_no_features():
    """If that is so in all rows: it has no vocabulary, which ends scikit-learn's."""
    train = rows([("yes", ""), ("no", " ")] * 20, [0, 1] * 20)
    found = bag_of_words.predict(train, {"dev": train}, False)["dev"]
    assert found.tolist() == train.labels_N.tolist()


def test_rows_of_one_class_alone_predict_it():
    train = rows([("a word",)] * 16, [1] * 16)
    found = bag_of_words.predict(train, {"dev": rows([("b",)], [0])}, False)["dev"]
    assert found.tolist() == [1]


def test_numbers_are_predicted():
    counts = np.arange(40) % 5
    texts = [(f"much {'very ' * n}",) for n in counts]
    train = rows(texts, counts, np.float32)
    found = bag_of_words.predict(train, {"dev": train}, True)["dev"]
    assert np.corrcoef(found, counts)[0, 1] > 0.9


@pytest.fixture
def constant(monkeypatch):
    """Two trials that cost nothing and say the first class always."""
    monkeypatch.setattr(evaluate, "finetune", untrained)


def test_it_is_scored_once_on_the_rows_of_the_model(
    tiny, corpus, tmp_path, constant, monkeypatch, said
):
    seen = []
    predict = bag_of_words.predict

    def noted(train, dev, regression):
        assert len(said) == 1  # it takes minutes where there are many rows
        seen.append(len(train))
        return predict(train, dev, regression)

    monkeypatch.setattr(bag_of_words, "predict", noted)
    entry = evaluated(tiny, corpus.tokenizer, tmp_path)["intents10"]
    score = entry["bag_of_words"]["accuracy"]
    assert score > 60 > entry["majority"]
    title = "Intents, 10 examples per class"
    assert said[0] == f"{title}: bag of words: fitting it to 32 training rows"
    assert said[1].startswith(f"{title}: bag of words: accuracy {score:.1f} (")
    assert said[1].endswith("s)")
    written = json.loads((tmp_path / "glue.json").read_text())["tasks"]["intents10"]
    assert written["bag_of_words"] == entry["bag_of_words"]
    page = (tmp_path / "glue.md").read_text()
    assert f"| {score:.1f} | {entry['majority']:.1f} | 32 of 2,088 | 697 |" in page
    assert "as the pretrained model, or better, on Intents, 10" in page

    more = with_glue(tiny, learning_rates=(1e-3, 2e-3))
    evaluated(more, corpus.tokenizer, tmp_path)
    assert seen == [32]


def test_a_report_has_it_and_the_track_under_every_table(finished, tiny):
    text = (finished[0] / "report.md").read_text()
    section = text[text.index("## Fine-tuning") :]
    entry = json.loads((finished[0] / "glue.json").read_text())["tasks"]["intents10"]
    score = entry["bag_of_words"]["accuracy"]
    assert "| random initialization | bag of words | majority class |" in section
    assert f"| {score:.1f} | {entry['majority']:.1f} |" in section
    assert "It does as well as the pretrained model, or better, on Intents" in section
    assert "\n\nTrack: **rules**. Not comparable with the paper" in section


def test_a_task_that_is_left_half_done_for_another_has_a_report(
    finished, tiny, corpus, tmp_path, constant
):
    """The initialization without scores has a dash. `glue.tasks` may change."""
    half = with_glue(tiny, starts=("pretrained",))
    evaluated(half, corpus.tokenizer, tmp_path)
    other = with_glue(tiny, tasks=("acceptability",))
    results = evaluated(other, corpus.tokenizer, tmp_path)
    for name in ("metrics.jsonl", "pretrain.json", "corpus.json"):
        (tmp_path / name).write_text((finished[0] / name).read_text())
    manifest, summary = (
        json.loads((tmp_path / name).read_text())
        for name in ("corpus.json", "pretrain.json")
    )
    run = report.Run(other, manifest, summary, results, tmp_path)
    text = report.write(run).read_text()
    line, *_ = [line for line in text.splitlines() if line.startswith("| Intents")]
    assert line.split(" | ")[5] == "-"
    # Scores of before the baseline was there are read as they are.
    for entry in results.values():
        del entry["bag_of_words"]
    text = report.write(run).read_text()
    line, *_ = [line for line in text.splitlines() if line.startswith("| Intents")]
    assert line.split(" | ")[5] == "-"

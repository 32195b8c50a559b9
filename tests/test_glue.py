"""The protocol: fine-tuning, and the files of scores."""

import dataclasses
import json

import numpy as np
import pytest

from cramjax.errors import UserError
from cramjax.glue import data, evaluate, scores, tasks
from cramjax.glue.finetune import _batches, _trim, finetune

CLS = 4


def test_every_epoch_sees_every_row_once_but_the_last_partial_batch(tiny):
    glue = dataclasses.replace(tiny.glue, batch_size=4, epochs=2, trials=2)
    batches = list(_batches(10, glue, seed=0))
    assert [b.shape for b in batches] == [(2, 4)] * 4
    for trial in range(2):
        for epoch in range(2):
            seen = np.concatenate(
                [b[trial] for b in batches[2 * epoch : 2 * epoch + 2]]
            )
            assert len(set(seen)) == 8


def test_trim():
    tokens = np.zeros((2, 40), np.uint16)
    tokens[0, :33] = 1
    assert _trim(tokens, 128).shape == (2, 64)
    assert _trim(tokens[:, :20], 128).shape == (2, 32)
    assert _trim(tokens, 40).shape == (2, 40)  # learned positions may end there


def learn(tiny, labels, outputs, learning_rate, epochs, **glue):
    """Fine-tunes on rows that tell their label by three tokens."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 200, (64, 12)).astype(np.uint16)
    tokens[:, 0] = CLS
    tokens[:, 3:6] = (8 + labels)[:, None]
    rows = data.Encoded(tokens, labels)
    glue = dataclasses.replace(tiny.glue, epochs=epochs, dropout=0.0, trials=2, **glue)
    (found,) = finetune(
        tiny.model,
        glue,
        rows,
        [rows],
        outputs,
        pretrained=None,
        learning_rate=learning_rate,
        seed=0,
    )
    return found


def test_finetuning_learns_a_separable_task(tiny):
    labels = np.random.default_rng(1).integers(0, 2, 64).astype(np.int32)
    outputs_TxNxC = learn(tiny, labels, 2, 1e-2, 20)
    assert outputs_TxNxC.shape == (2, 64, 2)
    assert (scores.predictions(outputs_TxNxC) == labels).all()


def test_finetuning_learns_numbers(tiny):
    """Raw scores of 0 to 5 with the mean squared error, as STS-B."""
    labels = np.random.default_rng(1).integers(0, 6, 64).astype(np.float32)
    outputs_TxNxC = learn(tiny, labels, 1, 1e-2, 40)
    assert outputs_TxNxC.shape == (2, 64, 1)
    predictions_TxN = scores.predictions(outputs_TxNxC)
    assert predictions_TxN.shape == (2, 64)
    assert np.abs(predictions_TxN - labels).mean() < 0.5


def test_a_warmup_in_steps_beyond_the_end_never_gets_to_the_peak(tiny):
    """The authors' 267 steps are more than the smallest tasks have."""
    labels = np.random.default_rng(1).integers(0, 2, 64).astype(np.int32)
    few, same, shares = (
        learn(tiny, labels, 2, 1e-2, 1, **glue)
        for glue in (
            {"warmup_steps": 1_000_000},
            {"warmup_steps": 1},  # of 4
            {"warmup_share": 0.25},
        )
    )
    np.testing.assert_array_equal(same, shares)
    start = learn(tiny, labels, 2, 1e-12, 1)
    assert np.abs(few - start).max() < 1e-3 < np.abs(same - start).max()


def test_every_start_gets_its_weights(tiny, corpus, tmp_path, monkeypatch):
    given = []

    def note(*args, pretrained, **_):
        given.append(pretrained)
        return [np.zeros((2, len(rows), 7)) for rows in args[3]]

    monkeypatch.setattr(evaluate, "finetune", note)
    starts = ("pretrained", "random", "ema", "lawa")
    config = dataclasses.replace(
        tiny, glue=dataclasses.replace(tiny.glue, starts=starts)
    )
    weights = {"pretrained": 1, "ema": 2, "lawa": 3}
    results = evaluate.evaluate(config, weights, corpus.tokenizer, tmp_path)
    assert given == [1, None, 2, 3]
    assert list(results["intents10"]["starts"]) == list(starts)


def test_too_few_rows_for_a_batch(tiny):
    rows = data.Encoded(np.ones((3, 8), np.uint16), np.zeros(3, np.int32))
    with pytest.raises(UserError, match=r"config\.glue\.batch_size is 16"):
        finetune(
            tiny.model,
            tiny.glue,
            rows,
            [rows],
            2,
            pretrained=None,
            learning_rate=1e-3,
            seed=0,
        )


@pytest.fixture
def glue_folder(tmp_path):
    """MNLI with all its splits, 16 training rows, and STS-B with a test set."""
    labels = ["entailment", "neutral", "contradiction"]
    head = "index\tsentence1\tsentence2\tgold_label\n"
    folder = tmp_path / "glue_data"
    (folder / "MNLI").mkdir(parents=True)
    (folder / "STS-B").mkdir()
    for name, rows in (("train", 16), ("dev_matched", 3), ("dev_mismatched", 4)):
        lines = [f"{i}\tA {i}.\tB {i}.\t{labels[i % 3]}\n" for i in range(rows)]
        (folder / "MNLI" / f"{name}.tsv").write_text(head + "".join(lines))
    test = "index\tsentence1\tsentence2\n0\tC.\tD.\n1\tE.\tF.\n"
    (folder / "MNLI" / "test_mismatched.tsv").write_text(test)
    (folder / "STS-B" / "test.tsv").write_text(test)
    lines = [f"{i}\tA {i}.\tB {i}.\t{i % 5}.5\n" for i in range(16)]
    for name in ("train", "dev"):
        text = head.replace("gold_label", "score") + "".join(lines)
        (folder / "STS-B" / f"{name}.tsv").write_text(text)
    return folder


def test_two_dev_sets_predictions_and_submission(
    tiny, corpus, glue_folder, tmp_path, monkeypatch
):
    """Three trials: all rows right, the first class always, the last class always."""
    calls = []

    def trained(model, glue, train, sets, outputs, **_):
        calls.append(outputs)
        if outputs == 1:
            return [
                np.full((3, len(rows), 1), [[[9.0]], [[-1]], [[2]]]) for rows in sets
            ]
        found = []
        for rows in sets:
            right = np.eye(3)[rows.labels_N]
            first, last = (np.eye(3)[[c] * len(rows)] for c in (0, 2))
            found.append(np.stack([right, first, last]))
        return found

    monkeypatch.setattr(evaluate, "finetune", trained)
    glue = dataclasses.replace(
        tiny.glue,
        tasks=("mnli", "stsb"),
        data_dir=str(glue_folder),
        starts=("random",),
        trials=3,
    )
    config = dataclasses.replace(tiny, glue=glue)
    evaluate.check(config)
    said = []
    results = evaluate.evaluate(config, {}, corpus.tokenizer, tmp_path, said.append)
    assert calls == [3, 1]
    # Labels of dev_mismatched are 0, 1, 2, 0.
    third = 100 / 3
    for name, trials in (("mnli", [100, third, third]), ("mnli_mm", [100, 50, 25])):
        scored = results[name]["starts"]["random"]
        assert scored["scores"]["0.001"] == pytest.approx(trials)
        assert scored["median"] == pytest.approx(sorted(trials)[1])
        assert scored["mean"] == pytest.approx(np.mean(trials))
        assert scored["std"] == pytest.approx(np.std(trials, ddof=1))
    assert results["stsb"]["starts"]["random"]["median"] == 0
    assert any(
        line.startswith("MNLI-mm: random at 0.001: accuracy 100") for line in said
    )

    written = json.loads((tmp_path / "glue.json").read_text())
    assert written["tasks"].keys() == {"mnli", "mnli_mm", "stsb"}
    assert (
        "mean of 3 of the paper's nine"
        in written["averages"]["random"]["nine"]["title"]
    )
    with np.load(tmp_path / "predictions" / "mnli_mm-random-0.001.npz") as saved:
        assert saved["labels_N"].tolist() == [0, 1, 2, 0]
        assert saved["predictions_TxN"].tolist() == [[0, 1, 2, 0], [0] * 4, [2] * 4]
    # Of the first dev set two trials have the median: the later one is in the middle.
    submission = tmp_path / "submission" / "random"
    lines = "index\tprediction\n0\tcontradiction\n1\tcontradiction\n"
    assert (submission / "MNLI-mm.tsv").read_text() == lines
    assert not (submission / "MNLI-m.tsv").exists()
    # Three scores of 0: the middle one is the second; its -1 is below the scale.
    assert (submission / "STS-B.tsv").read_text().endswith("0\t0.000\n1\t0.000\n")
    page = (tmp_path / "glue.md").read_text()
    assert "| MNLI-mm | accuracy | random | 0.001 | **50.0** |" in page

    monkeypatch.delattr(evaluate.data, "load")  # the files may be gone by now
    again = evaluate.evaluate(config, {}, corpus.tokenizer, tmp_path, said.append)
    assert calls == [3, 1]
    assert again == json.loads(json.dumps(results))


def test_a_dev_set_that_comes_between_two_sessions_is_named(
    tiny, corpus, glue_folder, tmp_path, monkeypatch
):
    def trained(model, glue, train, sets, outputs, **_):
        return [np.zeros((2, len(rows), outputs)) for rows in sets]

    monkeypatch.setattr(evaluate, "finetune", trained)
    glue = dataclasses.replace(
        tiny.glue, tasks=("mnli",), data_dir=str(glue_folder), starts=("random",)
    )
    path = glue_folder / "MNLI" / "dev_mismatched.tsv"
    text = path.read_text()
    path.unlink()
    config = dataclasses.replace(tiny, glue=glue)
    said = []
    evaluate.evaluate(config, {}, corpus.tokenizer, tmp_path, said.append)
    assert said[0] == "MNLI-mm is not scored: there is no MNLI/dev_mismatched.tsv"
    assert said[0] in (tmp_path / "glue.md").read_text()
    path.write_text(text)
    glue = dataclasses.replace(glue, learning_rates=(1e-3, 2e-3))
    config = dataclasses.replace(tiny, glue=glue)
    message = r"has scores of mnli, and the files are now of mnli, mnli_mm: delete it"
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(config, {}, corpus.tokenizer, tmp_path, said.append)


def test_the_best_rate_is_the_first_sets_and_serves_the_others():
    entries = [{"metric": "accuracy", "starts": {}} for _ in range(2)]
    for rate, first, second in (
        (0.1, [1, 5, 9], [90, 90, 90]),
        (0.2, [4, 6, 8], [1, 2, 3]),
    ):
        for entry, trials in zip(entries, (first, second), strict=True):
            scores.add(entry, "random", rate, {"accuracy": trials, "f1": [0, 0, 1]})
    scores.summarise(entries, "random")
    found = [entry["starts"]["random"] for entry in entries]
    assert [f["best_rate"] for f in found] == [0.2, 0.2]
    assert [f["median"] for f in found] == [6, 2]
    assert found[1]["others"]["f1"]["mean"] == pytest.approx(1 / 3)


def test_no_test_sets_if_they_are_not_wanted(tiny, glue_folder):
    glue = dataclasses.replace(tiny.glue, data_dir=str(glue_folder))
    task = tasks.TASKS["stsb"]
    assert list(data.load(task, glue).test) == ["STS-B"]
    assert data.load(task, dataclasses.replace(glue, test_sets=False)).test == {}


def test_scores_of_an_earlier_version_are_named(tiny, corpus, tmp_path):
    (tmp_path / "glue.json").write_text('{"intents10": {}}')
    with pytest.raises(UserError, match=r"glue\.json is of an earlier version.*delete"):
        evaluate.evaluate(tiny, {}, corpus.tokenizer, tmp_path)

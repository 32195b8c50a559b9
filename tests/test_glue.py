"""The protocol: fine-tuning, and the files of scores."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from fake_glue import evaluated, finetuned, untrained

from cramjax.errors import UserError
from cramjax.glue import data, evaluate, scores, tasks
from cramjax.glue import finetune as finetuning
from cramjax.glue.finetune import finetune

CLS = 4


def learn(tiny, labels, outputs, learning_rate, epochs, **glue):
    """Fine-tunes on rows that tell their label by three tokens."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 200, (64, 12)).astype(np.uint16)
    tokens[:, 0] = CLS
    tokens[:, 3:6] = (8 + labels)[:, None]
    rows = data.Encoded(tokens, labels)
    glue = dataclasses.replace(tiny.glue, epochs=epochs, dropout=0.0, trials=2, **glue)
    found = finetune(
        *(tiny.model, glue, rows, [rows], outputs),
        pretrained=None,
        learning_rate=learning_rate,
        seed=0,
    )
    return found.outputs[0]


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


def rows_of_two_lengths(count):
    """Returns rows of 20 or 40 tokens; the longer ones are of class 1."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 200, (count, 40)).astype(np.uint16)
    labels = generator.integers(0, 2, count).astype(np.int32)
    tokens[labels == 0, 20:] = 0
    return data.Encoded(tokens, labels)


def loss(outputs_NxC, labels_N):
    return -np.asarray(jax.nn.log_softmax(outputs_NxC))[range(len(labels_N)), labels_N]


def twenty_steps(tiny, at_once=3, learning_rate=1e-3):
    """Returns trials after 20 steps of 4 rows, at a rate that moves them."""
    glue = dataclasses.replace(
        tiny.glue,
        epochs=2,
        batch_size=4,
        trials=3,
        trials_at_once=at_once,
        max_length=48,
    )
    rows = rows_of_two_lengths(40)
    return finetune(
        *(tiny.model, glue, rows, [rows], 2),
        pretrained=None,
        learning_rate=learning_rate,
        seed=3,
    )


def test_trials_in_one_program_are_those_that_run_alone(tiny):
    labels_N = rows_of_two_lengths(40).labels_N
    together, apart = twenty_steps(tiny), twenty_steps(tiny, 1)
    assert (together.at_once, apart.at_once) == (3, 1)
    assert together.outputs[0].shape == (3, 40, 2)
    for one, other in zip(together.outputs[0], apart.outputs[0], strict=True):
        difference = loss(one, labels_N) - loss(other, labels_N)
        assert np.abs(difference).max() < 1e-5
    outputs_TxNxC = together.outputs[0]
    assert np.abs(outputs_TxNxC[0] - outputs_TxNxC[1]).max() > 1e-3  # they do differ
    moved = outputs_TxNxC - twenty_steps(tiny, learning_rate=0.0).outputs[0]
    assert np.abs(moved).max() > 1e-2  # 20 steps make a difference


def test_a_chunk_is_its_steps_one_after_the_other(tiny, monkeypatch):
    whole = twenty_steps(tiny)
    monkeypatch.setattr(finetuning, "CHUNK", 1)
    single = twenty_steps(tiny)
    np.testing.assert_allclose(whole.outputs[0], single.outputs[0], atol=1e-6)


def test_memory_that_is_short_after_all_separates_the_trials(tiny, monkeypatch):
    """It is seen in prediction only."""
    whole = twenty_steps(tiny)
    predict, fits = finetuning._predict_all, 1

    def predict_if_it_fits(static, params_T, rows):
        if len(jax.tree.leaves(params_T)[0]) > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return predict(static, params_T, rows)

    monkeypatch.setattr(finetuning, "_predict_all", predict_if_it_fits)
    split = twenty_steps(tiny)
    assert split.at_once == 1
    np.testing.assert_allclose(split.outputs[0], whole.outputs[0], atol=1e-4)
    fits = 0
    with pytest.raises(UserError, match=r"config\.glue\.batch_size is .* one trial"):
        twenty_steps(tiny)


def test_the_faster_way_is_chosen_if_memory_is_not_short(tiny, monkeypatch):
    def seconds_per_call(take_steps, trials_T):
        count = len(trials_T.loss)
        asked.append(count)
        if count > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {1: 1.0, 2: 1.5, 3: 6.0}[count]

    monkeypatch.setattr(finetuning, "seconds_per_call", seconds_per_call)
    # (trials, what fits, what is chosen): 1.5 s for 2 are less than 2 x 1.0.
    for trials, fits, chosen in ((2, 9, 2), (3, 9, 1), (2, 1, 1)):
        asked = []
        glue = dataclasses.replace(
            tiny.glue, trials=trials, trials_at_once=0, eps=1e-6 + fits
        )
        assert finetuning.fastest(tiny.model, glue, 48)[0] == chosen
        assert finetuning.fastest(tiny.model, glue, 48)[0] == chosen
        assert asked == [1, trials]  # measured once for all tasks


def test_it_is_measured_for_real(tiny):
    glue = dataclasses.replace(tiny.glue, trials=2, trials_at_once=0)
    static = finetuning._Static(tiny.model, glue, 2, 0.1)
    assert 0 < finetuning._seconds_per_step(static, 2, 32) < 10


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
        return untrained(*args)

    monkeypatch.setattr(evaluate, "finetune", note)
    starts = ("pretrained", "random", "ema", "lawa")
    config = dataclasses.replace(
        tiny, glue=dataclasses.replace(tiny.glue, starts=starts)
    )
    weights = {"pretrained": 1, "ema": 2, "lawa": 3}
    results = evaluated(config, corpus.tokenizer, tmp_path, weights)
    assert given == [1, None, 2, 3]
    assert list(results["intents10"]["starts"]) == list(starts)


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


@pytest.fixture(name="untrained")
def no_training(monkeypatch):
    """Two trials that cost nothing: all logits are 0."""
    monkeypatch.setattr(evaluate, "finetune", untrained)


@pytest.fixture
def scoring_mnli(tiny, glue_folder, untrained):
    """The config that scores the folder's MNLI, from random weights, for nothing."""
    glue = dataclasses.replace(
        tiny.glue, tasks=("mnli",), data_dir=str(glue_folder), starts=("random",)
    )
    return dataclasses.replace(tiny, glue=glue)


def with_a_rate_more(config):
    """Returns the config with one of its jobs not done yet."""
    glue = dataclasses.replace(config.glue, learning_rates=(1e-3, 2e-3))
    return dataclasses.replace(config, glue=glue)


def test_two_dev_sets_predictions_and_submission(
    tiny, corpus, glue_folder, tmp_path, monkeypatch, said
):
    """Three trials: all rows right, the first class always, the last class always."""
    calls = []

    def trained(model, glue, train, sets, outputs, **_):
        calls.append(outputs)
        if outputs == 1:
            return finetuned(
                [np.full((3, len(rows), 1), [[[9.0]], [[-1]], [[2]]]) for rows in sets]
            )
        found = []
        for rows in sets:
            right = np.eye(3)[rows.labels_N]
            first, last = (np.eye(3)[[c] * len(rows)] for c in (0, 2))
            found.append(np.stack([right, first, last]))
        return finetuned(found)

    monkeypatch.setattr(evaluate, "finetune", trained)
    glue = dataclasses.replace(
        tiny.glue,
        tasks=("mnli", "stsb"),
        data_dir=str(glue_folder),
        starts=("random",),
        trials=3,
    )
    config = dataclasses.replace(tiny, glue=glue)
    results = evaluated(config, corpus.tokenizer, tmp_path)
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
    again = evaluated(config, corpus.tokenizer, tmp_path)
    assert calls == [3, 1]
    assert again == json.loads(json.dumps(results))


def test_a_dev_set_that_comes_between_two_sessions_is_named(
    scoring_mnli, corpus, glue_folder, tmp_path, said
):
    path = glue_folder / "MNLI" / "dev_mismatched.tsv"
    text = path.read_text()
    path.unlink()
    evaluated(scoring_mnli, corpus.tokenizer, tmp_path)
    assert said[0] == "MNLI-mm is not scored: MNLI/dev_mismatched.tsv is missing"
    assert said[0] in (tmp_path / "glue.md").read_text()
    path.write_text(text)
    config = with_a_rate_more(scoring_mnli)
    message = r"has scores of mnli \(.*, and the files now give mnli .*; mnli_mm \("
    with pytest.raises(UserError, match=message):
        evaluated(config, corpus.tokenizer, tmp_path)


@pytest.mark.parametrize("name", ["train", "dev_matched"])
def test_rows_that_change_between_two_sessions_are_refused(
    scoring_mnli, corpus, glue_folder, tmp_path, name
):
    evaluated(scoring_mnli, corpus.tokenizer, tmp_path)
    path = glue_folder / "MNLI" / f"{name}.tsv"
    path.write_text(path.read_text() + "99\tA.\tB.\tneutral\n")
    config = with_a_rate_more(scoring_mnli)
    now = (
        "17 of them used, and 3 dev"
        if name == "train"
        else "16 of them used, and 4 dev"
    )
    with pytest.raises(UserError, match=f"now give mnli .*{now}"):
        evaluated(config, corpus.tokenizer, tmp_path)


@pytest.mark.parametrize("lacking", ["train", "dev"])
def test_a_task_without_one_of_its_sets_is_named_and_left_out(
    tiny, corpus, glue_folder, tmp_path, untrained, lacking, said
):
    (glue_folder / "STS-B" / f"{lacking}.tsv").unlink()

    def having(*names):
        glue = dataclasses.replace(
            tiny.glue, tasks=names, data_dir=str(glue_folder), starts=("random",)
        )
        return dataclasses.replace(tiny, glue=glue)

    config = having("mnli", "stsb")
    results = evaluated(config, corpus.tokenizer, tmp_path)
    assert results.keys() == {"mnli", "mnli_mm"}
    [line] = [line for line in said if "STS-B" in line and "missing" in line]
    assert line.startswith(f"STS-B is not scored: STS-B/{lacking}.tsv is missing; ")
    page = (tmp_path / "glue.md").read_text()
    note = "STS-B is not scored: its training set or its dev set is missing.\n"
    assert page.endswith(note)
    assert "mean of 2 of the paper's nine numbers, without SST-2, STS-B, RTE" in page
    # MNLI is scored already, and nothing else can be.
    assert evaluate.check(having("mnli"), tmp_path) == []
    (tmp_path / "glue.json").unlink()
    found = evaluate.check(having("mnli", "stsb", "rte"), tmp_path)
    assert [task.name for task in found] == ["mnli"]
    # Nothing is left to score.
    with pytest.raises(UserError) as error:
        evaluate.check(having("stsb", "rte", "cb"), tmp_path)
    first, second, third = str(error.value).splitlines()
    assert first == line and second.startswith("RTE is not scored: RTE/train.tsv is")
    assert f"config.glue.data_dir is {str(glue_folder)!r}: pass --config" in second
    assert "config.glue.superglue_dir is" in third


def test_what_is_scored_needs_no_files(scoring_mnli, corpus, glue_folder, tmp_path):
    evaluated(scoring_mnli, corpus.tokenizer, tmp_path)
    (glue_folder / "MNLI" / "train.tsv").unlink()
    assert evaluate.check(scoring_mnli, tmp_path) == []
    with pytest.raises(UserError, match=r"MNLI/train\.tsv is missing"):
        evaluate.check(with_a_rate_more(scoring_mnli), tmp_path)


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
        evaluated(tiny, corpus.tokenizer, tmp_path)

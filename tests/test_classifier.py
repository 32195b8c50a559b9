"""The user's own classifier: its folder, training it, and predicting with it."""

import contextlib
import dataclasses
import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cramjax
from cramjax import files
from cramjax.checkpoints import classifier as classifier_module
from cramjax.checkpoints.classifier import SavedClassifier, save
from cramjax.commands import predict
from cramjax.commands.finetune import _choose as choose
from cramjax.errors import UserError
from cramjax.glue import data
from cramjax.glue.tasks import Split
from cramjax.main import main
from cramjax.model.encoder import Classifier


def test_a_saved_classifier_is_the_same_when_loaded(tiny, corpus, tmp_path):
    module = Classifier(tiny.model, classes=3, head_width=16)
    params = module.init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    kept = SavedClassifier(
        model=tiny.model,
        params=params,
        tokenizer=corpus.tokenizer,
        labels=("a", "b", "c"),
        columns=("x", "y"),
        head_width=16,
        pooling="mean",
        max_length=32,
        empty_second=True,
    )
    save(tmp_path / "kept", kept, {"metric": "accuracy"})
    found = cramjax.load_classifier(tmp_path / "kept")
    with pytest.raises(AttributeError):  # interrupted
        save(tmp_path / "cut", dataclasses.replace(kept, tokenizer=None), {})
    assert not classifier_module.is_saved(tmp_path / "cut")
    half = dataclasses.replace(tiny.model, dtype="bfloat16")
    save(tmp_path / "half", dataclasses.replace(kept, model=half), {})
    assert cramjax.load_classifier(tmp_path / "half").model == kept.model  # float32
    for field in dataclasses.fields(kept):
        if field.name not in ("params", "tokenizer"):
            assert getattr(found, field.name) == getattr(kept, field.name)
    path = tmp_path / "half" / "config.json"
    facts = json.loads(path.read_text())
    del facts["pooling"], facts[files.CHECKSUM]  # of an earlier version
    files.write_record(path, facts)
    assert cramjax.load_classifier(path.parent).pooling == "cls"
    # Each row has the outputs it has alone, whatever its length and its place.
    texts = [("the sea " * n, "a ship") for n in (9, 1, 30)]
    outputs_NxC = found.outputs(texts)
    assert outputs_NxC.shape == (3, 3)
    for text, outputs_C in zip(texts, outputs_NxC, strict=True):
        alone_C = kept.outputs([text])[0]
        np.testing.assert_allclose(outputs_C, alone_C, atol=1e-5)
    best = outputs_NxC.argmax(axis=1)
    predicted = found.predict(texts)
    assert [label for label, _ in predicted] == ["abc"[i] for i in best]
    assert all(1 / 3 <= probability <= 1 for _, probability in predicted)
    assert found.outputs([]).shape == (0, 3)
    with pytest.raises(UserError, match="with 2 texts in each: x, y"):
        found.predict(["one text"])
    regression = dataclasses.replace(found, labels=())
    head = {name: array[..., :1] for name, array in found.params["head"].items()}
    regression.params["head"] = head
    np.testing.assert_allclose(regression.predict(texts), outputs_NxC[:, 0], atol=1e-6)


@pytest.mark.parametrize(("keep", "number"), [("best", 2), ("median", 3)])
def test_the_saved_trial_is_of_the_best_rate(keep, number):
    found = {"0.1": [1.0, 9.0, 9.0, 3.0], "0.2": [99.0, 0.0, 0.0, 0.0]}
    scored = {"scores": found, "best_rate": 0.1, "diverged": {"0.1": 0, "0.2": 4}}
    entry = {"metric": "f1", "starts": {"pretrained": scored}}
    assert choose(entry, keep)[:2] == (0.1, number)
    scored["diverged"]["0.1"] = 1
    with pytest.raises(UserError, match="trials diverged at every learning rate"):
        choose(entry, keep)


def test_a_folder_that_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no classifier"):
        classifier_module.load(tmp_path)


def rows_of_intents(name, count):
    path = Path(cramjax.__file__).parent / "demo" / "intents" / f"{name}.tsv"
    header, *lines = path.read_text().splitlines()
    assert header.split("\t") == ["sentence", "label"]
    return [line.split("\t") for line in lines[:: len(lines) // count]][:count]


def write(path, rows, header=("sentence", "label")):
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)))
    return path


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """A classifier of intents, its dev rows, and what training it printed."""
    folder = tmp_path_factory.mktemp("own")
    rows = {name: rows_of_intents(name, n) for name, n in (("train", 200), ("dev", 60))}
    files = [f"--{name}={write(folder / f'{name}.tsv', rows[name])}" for name in rows]
    flags = [f"--checkpoint={finished[0]}", *files, f"--workdir={folder / 'model'}"]
    flags += ["--text=sentence", "--label=label", "--config.glue.epochs=4"]
    flags += ["--config.glue.learning_rates=(1e-8,1e-2)", "--config.glue.pooling=mean"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["finetune", *flags]) == 0
    return folder / "model", rows["dev"], out.getvalue(), flags


def test_the_saved_trial_predicts_what_it_was_scored_on(
    trained, tmp_path, capsys, monkeypatch
):
    folder, dev, printed, _ = trained
    labels = [label for _, label in dev]
    by_rate = re.findall(r"pretrained at (.*): accuracy (.*), (.*) \(", printed)
    (_, *low), (_, *high) = [[float(x) for x in found] for found in by_rate]
    assert max(high) > max(low) and high[0] != high[1]
    report = (folder / "report.md").read_text()
    facts = json.loads((folder / "config.json").read_text())
    assert (facts["train_rows"], facts["dev_rows"]) == (200, len(dev))  # all
    saved = f"the best of 2 at the learning rate 0.01: accuracy {max(high)}."
    assert saved in report and saved in printed
    by_label, of_pairs = report.split("How many dev rows of each label")
    total = sum(
        int(x) for x in re.findall(r"\| \w+ (?:\| [\d.]+ ){3}\| (\d+) \|", by_label)
    )
    assert total == len(dev)
    # Only the texts' column is needed, and each row is answered in its place.
    texts = [[sentence] for sentence, _ in dev]
    path, out = write(tmp_path / "new.tsv", texts, ["sentence"]), tmp_path / "out.tsv"
    monkeypatch.setattr(predict, "ROWS", 16)
    assert main(["predict", f"--model={folder}", str(path), f"--out={out}"]) == 0
    header, *lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert header == ["label", "probability"]
    pairs = list(zip(labels, (found for found, _ in lines), strict=True))
    names = re.search(r"\n\|  \| (.*) \|", of_pairs)[1].split(" | ")
    assert len(names) == 7
    for name in names:
        counts = " | ".join(str(pairs.count((name, other))) for other in names)
        assert f"| {name} | {counts} |" in of_pairs
    right = [found == label for (found, _), label in zip(lines, labels, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(max(high), abs=0.05)
    json_lines = [json.dumps({"id": 1, "sentence": text}) for [text] in texts]
    path = tmp_path / "new.jsonl"
    path.write_text("\n".join(json_lines))
    capsys.readouterr()
    assert main(["predict", f"--model={folder}", str(path)]) == 0
    assert capsys.readouterr().out == out.read_text()


def one_error(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("dev", "flags", "message"),
    [
        (
            [["a", "x"], ["b", "z"]],
            (),
            r"dev\.tsv:3 has the label 'z', not one of 'x', ",
        ),
        ([["a", "x"], [" ", "y"]], (), r"dev\.tsv:3 has no text: add it, or delete"),
        (None, (), r"--dev=.*dev\.tsv: there is no such file"),
        ([["a", "x"]], ("--metric=spearman",), r"train\.tsv:2 .* 'x', not a number"),
        ([["a", "x"]], ("--keep=last",), "--keep=last: must be best or median"),
        (
            [["a", "x"]],
            ("--config.model.width=8",),
            "only seed and the keys of glue",
        ),
        ([["a", "x"]], ("--config.glue.starts=random",), "starts=random': of the conf"),
    ],
)
def test_mistakes_in_finetune_are_one_line(
    finished, dev, flags, message, tmp_path, capsys
):
    files = [f"--{name}={tmp_path / name}.tsv" for name in ("train", "dev")]
    write(tmp_path / "train.tsv", [["a", "x"], ["b", "y"]] * 8)
    if dev:
        write(tmp_path / "dev.tsv", dev)
    flags = (*files, "--text=sentence", "--label=label", *flags)
    workdir = tmp_path / "new"
    command = ["finetune", f"--checkpoint={finished[0]}", f"--workdir={workdir}"]
    assert main([*command, *flags]) == 2
    assert re.search(message, one_error(capsys))
    assert not workdir.exists()


def test_a_model_is_not_overwritten(trained, finished, capsys):
    *_, flags = trained
    for folder in (trained[0], finished[0]):
        assert main(["finetune", *flags, f"--workdir={folder}"]) == 2
        assert "holds a model: pass another --workdir" in one_error(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\na\n\n b\n", r"new\.tsv:3 has no text"),
        ("text\na\n", "has no column 'sentence'"),
        ("sentence\na\tb\n", "has 2 columns, not 1"),
        (None, "there is no such file"),
    ],
)
def test_mistakes_in_predict_write_nothing(trained, text, message, tmp_path, capsys):
    path, out = tmp_path / "new.tsv", tmp_path / "out.tsv"
    if text:
        path.write_text(text)
    assert main(["predict", f"--model={trained[0]}", str(path), f"--out={out}"]) == 2
    assert re.search(message, one_error(capsys))
    assert not out.exists()
    assert main(["predict", f"--model={trained[0]}", str(path)]) == 2
    assert capsys.readouterr().out == ""
    assert main(["predict", f"--model={tmp_path}", str(path)]) == 2
    capsys.readouterr()


def test_rows_are_read_one_at_a_time(tmp_path):
    path = write(tmp_path / "rows.tsv", [["a"], ["b", "c"]], ["sentence"])
    rows = data.rows_of(path, Split((), ("sentence",), label=None))
    assert next(rows).texts == ("a",)
    with pytest.raises(UserError, match="has 2 columns"):
        next(rows)

"""compare.html of two finished runs, and examples of a model on held-out text."""

import json
import shutil

import numpy as np
import pytest
from test_page import Checker

from cramjax import compare, examples, files, page
from cramjax.main import main


def change(path, **values):
    files.write_record(path, files.read_json(path, "") | values)


@pytest.fixture
def other(finished, tmp_path):
    """The same run, but for a key and what it predicted after fine-tuning."""
    workdir = shutil.copytree(
        finished[0],
        tmp_path / "other<b>",
        ignore=shutil.ignore_patterns("checkpoints", "*.safetensors"),
    )
    config = files.read_json(workdir / "config.json", "")
    config["optimizer"]["learning_rate"] = 0.125
    config["data"]["dir"] = "elsewhere"  # changes no result
    change(workdir / "config.json", **config)
    change(workdir / "pretrain.json", held_out_loss=1.2345)
    path = workdir / "predictions" / "intents10-pretrained-0.001.npz"
    labels_N = np.load(path)["labels_N"]
    wrong_TxN = np.stack([(labels_N + 1) % 7] * 2)
    np.savez(path, labels_N=labels_N, predictions_TxN=wrong_TxN)
    return workdir


def compared(*arguments):
    assert main(["report", *map(str, arguments)]) == 0


def test_a_comparison_has_what_differs(finished, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compared(finished[0], other)
    text = (tmp_path / "compare.html").read_text()
    checked = Checker(text)
    assert checked.faults == [] and len(text) < 1_000_000
    assert text.count("<svg") == 3
    loss = json.loads((finished[0] / "pretrain.json").read_text())["held_out_loss"]
    assert f"finished{loss:.3f}" in checked.text and "other<b>1.234" in checked.text
    settings = text[text.index("Settings that differ") : text.index("<h2>Losses")]
    assert settings.count("<tr>") == 2
    assert "<td>optimizer.learning_rate</td><td>0.004</td><td>0.125</td>" in settings
    entry = json.loads((finished[0] / "glue.json").read_text())["tasks"]["intents10"]
    mean = entry["starts"]["pretrained"]["mean"]
    assert "other<b> - finished" in checked.text
    assert f"<td>{-mean:+.1f} (" in text  # the other has none right
    assert "tokenizers differ" not in text and "corpora differ" not in text


def test_other_tokenizers_other_rows_and_no_scores_are_said(
    finished, other, tmp_path, monkeypatch
):
    change(other / "corpus.json", tokenizer_crc32=1)
    path = other / "predictions" / "intents10-pretrained-0.001.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{k: v[..., ::-1] for k, v in arrays.items()})
    out = tmp_path / "c.html"
    compared(finished[0], other, f"--out={out}")
    text = out.read_text()
    assert "<strong>The tokenizers differ</strong>" in text
    assert "<strong>The corpora differ</strong>" in text
    assert "<td>other rows</td>" in text
    (other / "glue.json").unlink()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / other.name).symlink_to(other)  # of the same name
    compared(finished[0], other, tmp_path / "again" / other.name, f"--out={out}")
    text = out.read_text()
    assert "Fine-tuning" not in text and "/again/other&lt;b&gt;</strong>" in text
    monkeypatch.chdir(tmp_path)
    again = tmp_path / "again" / other.name
    compared(other.name, again, "again/other<b>", f"--out={out}")
    assert out.read_text().count("again/other&lt;b&gt;</strong>") == 1


def test_losses_are_over_tokens_flops_and_hours(finished):
    run = compare.read(finished[0])
    figures = [x for x in compare._losses({"a": run}) if isinstance(x, page.Figure)]
    ends = [figure.drawn.axes[0].lines[1].get_xdata()[0] for figure in figures]
    keys = ("tokens", "model_flops", "elapsed_s")
    tokens, flops, seconds = (run.summary[key] for key in keys)
    assert ends == pytest.approx([tokens / 1e6, flops, seconds / 3600])
    for figure, end in zip(figures[:2], ends[:2], strict=True):
        assert figure.drawn.axes[0].lines[0].get_xdata()[-1] == pytest.approx(end)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no workdir: pass --workdir=DIR, or two or more to compare"),
        (["{run}", "nowhere"], "nowhere/pretrain.json cannot be read"),
        (["{run}", "{other}"], "leave {other} out"),
        (["{run}", "{other}", "--out=no/c.html"], "there is no folder no"),
    ],
)
def test_a_mistake_is_one_line(finished, other, arguments, message, capsys):
    (other / "pretrain.json").write_text("{}")
    names = {"run": finished[0], "other": other}
    assert main(["report", *(part.format(**names) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert message.format(**names) in error and error.count("\n") == 1


def test_examples_are_of_held_out_sentences(finished, corpus, monkeypatch):
    blocks = examples.blocks(finished[0], corpus)
    filled, near = [block for block in blocks if isinstance(block, page.Table)]
    assert len(filled.rows) == len(near.rows) == examples.SHOWN
    for (masked, hidden, guesses), (text, nearest, _) in zip(
        filled.rows, near.rows, strict=True
    ):
        assert masked.replace("`<mask>`", hidden) == text != nearest
        assert guesses.count("%") == examples.GUESSES
    assert examples.blocks(finished[0], corpus) == blocks
    monkeypatch.setattr(examples, "SENTENCES", examples.SHOWN - 1)
    assert examples.blocks(finished[0], corpus) == []

"""Pretraining that begins with another model's weights."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal

import numpy as np
import pytest
from conftest import tiny_config
from safetensors.numpy import load_file, save_file
from test_pretrained import BERT, golden, write_folder

import cramjax
from cramjax.checkpoints import initial
from cramjax.errors import Interrupted, UserError
from cramjax.main import main
from cramjax.run import run
from cramjax.training import log, loop

WEIGHTS = "weights.safetensors"


def losses(workdir):
    lines = log.read(workdir / "metrics.jsonl")
    return [line["loss"] for line in lines if "event" not in line]


def continued(data_dir, source, *overrides):
    """Two layers become those of the source; 20 micro-steps.

    The shape is that of a config file, which may have one: overrides may not.
    """
    config = tiny_config(
        data_dir,
        *("model.layers=3", "model.vocab_size=300", "data.order=stored"),
        *("budget.tokens=2560", "log.every_steps=1"),
        *overrides,
    )
    glue = dataclasses.replace(config.glue, tasks=())
    return dataclasses.replace(config, init_from=str(source), glue=glue)


def test_a_run_goes_on_from_a_finished_one(finished, data_dir, tmp_path, monkeypatch):
    """Stopped and resumed, with the same numbers; and then without the folder."""
    source = shutil.copytree(finished[0], tmp_path / "source")
    config = continued(data_dir, source)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(config, whole)
    assert losses(whole)[0] < 5.4 < 5.5 < losses(finished[0])[0]  # ln 256 = 5.54

    def text_then_signal(clock, *_, **__):
        if clock.step == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return ""

    monkeypatch.setattr(loop, "progress_text", text_then_signal)
    with pytest.raises(Interrupted):
        run(config, stopped)
    monkeypatch.undo()
    other = shutil.copytree(stopped, tmp_path / "other")
    run(config, stopped)
    assert losses(stopped) == losses(whole)
    for name in (WEIGHTS, "weights-ema.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()

    model = cramjax.load(whole)
    assert (model.model.layers, model.model.vocab_size) == (2, 256)
    text = "the king of the sea"
    assert model.ids(text) == cramjax.load(source).ids(text)
    assert f"pretrained from {source} on" in (whole / "report.md").read_text()

    tensors = load_file(source / WEIGHTS)
    tensors["final_norm.scale"] += 1e-3
    save_file(tensors, source / WEIGHTS)
    with pytest.raises(UserError, match="with config.init_hash='.*', not '.*': pass"):
        run(config, other)
    shutil.rmtree(source)
    with pytest.raises(UserError, match="config.init_from: .* holds no finished model"):
        run(config, other)
    run(config, whole)


def test_the_state_begins_with_the_weights_and_a_rollback_returns_to_them(
    finished, data_dir, tmp_path
):
    config, params = initial.begin(continued(data_dir, finished[0]), tmp_path)
    assert config.init_hash and config.model.layers == 2
    again, _ = initial.begin(config, tmp_path)
    assert again == config
    step = dataclasses.replace(loop.train_step.build(config), initial_params=params)
    with loop.CheckpointStore(tmp_path / "checkpoints", config.checkpoint) as store:
        state, _ = loop.restore_or_init(step, store, rollbacks=1)
    expected = cramjax.load(finished[0]).params["embedding"]["word"]
    np.testing.assert_array_equal(state.params["embedding"]["word"], expected)
    assert state.rate_scale == config.guard.rate_factor


def write_words(path):
    draw = random.Random(3)
    documents = (
        " ".join(f"w{draw.randrange(1, 60)}" for _ in range(60)) for _ in range(200)
    )
    path.write_text("\n\n".join(documents))


@pytest.mark.slow
def test_a_run_goes_on_from_another_projects_model(tmp_path):
    _, tensors = golden("hf_bert_tiny")
    source = write_folder(tmp_path / "bert", BERT, tensors)
    write_words(tmp_path / "words.txt")
    overrides = (
        *(f"data.sources={tmp_path}/words.txt", "data.max_tokens_per_char=0.5"),
        *("model.max_length=8", "glue.max_length=8", "budget.tokens=640"),
    )
    config = continued(tmp_path / "data", source, *overrides)
    workdir = tmp_path / "w"
    run(config, workdir)
    model, before = cramjax.load(workdir), cramjax.load(source)
    recorded = json.loads((workdir / "config.json").read_text())
    assert recorded["data"]["tokenizer_kind"] == "imported"
    assert recorded["data"]["cls"] == (before.first == 4)
    assert (model.model.token_types, model.model.max_length) == (2, 8)
    text = "w1 w2 [MASK] w59 <mask> x"
    assert model.ids(text)[:8] == before.ids(text)[:7] + model.ids("")[-1:]
    assert model.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    first = model.params["embedding"]["positions"]["table"]
    np.testing.assert_allclose(
        first, before.params["embedding"]["positions"]["table"][:8], atol=0.02
    )
    long = dataclasses.replace(config.model, max_length=32)
    with pytest.raises(UserError, match="max_length is 32: must be at most 16, the le"):
        initial.begin(dataclasses.replace(config, model=long), tmp_path / "other")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["model.width=64"], "config.model.width: this is taken from the model"),
        (["data.cls=True"], "config.data.cls: this is taken from the model"),
        (["init_from=nowhere"], "config.init_from: nowhere holds no finished model"),
        (["init_hash=12"], "init_hash is '12': must be '.*', the hash of the we"),
        (["init_from=", "init_hash=12"], "init_hash is '12': must be '' without"),
    ],
)
def test_what_does_not_fit_is_one_line(finished, tmp_path, capsys, flags, message):
    argv = ["--config=quickstart", f"--config.init_from={finished[0]}"]
    argv += [f"--workdir={tmp_path}/w", *(f"--config.{flag}" for flag in flags)]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)


@pytest.mark.slow
def test_it_is_rehearsed(finished, tmp_path, capsys):
    argv = ["--config=quickstart", f"--config.init_from={finished[0]}", "--rehearse"]
    keys = ("micro_batch=4", "batch.sequences=12", "model.max_length=32")
    keys += ("glue.tasks=()", f"data.dir={tmp_path}/data", "budget.tokens=5120")
    argv += [f"--workdir={tmp_path}/w", *(f"--config.{key}" for key in keys)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "corpus: 2,000" in out and "read back equal" in out
    assert not (tmp_path / "w").exists()

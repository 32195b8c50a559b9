"""Whole small runs, in-process."""

import copy
import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
from conftest import TINY, tiny_config
from test_pretrain import stop_after

from cramjax import config as config_module
from cramjax import files
from cramjax.errors import UserError
from cramjax.main import main
from cramjax.run import (
    check_corpus,
    check_platform,
    check_workdir,
    lock_workdir,
    note_corpus,
    run,
)
from cramjax.training import log as metrics_log
from cramjax.training import pretrain


def test_every_config_key_is_read(finished, tiny):
    keys = set(config_module.flatten(config_module.to_dict(tiny)))
    assert keys - finished[1] == set()


def test_a_run_leaves_its_report(finished):
    workdir = finished[0]
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "pretrain.json", "glue.json"}
    assert (workdir / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (workdir / "schedule.png").stat().st_size > 5000
    report = (workdir / "report.md").read_text()
    assert "Intents, 10 examples per class | accuracy | 32 of 2,088" in report
    assert "5,120 (" in report
    results = json.loads((workdir / "glue.json").read_text())["tasks"]["intents10"]
    assert set(results["starts"]) == {"pretrained", "random"}
    assert len(results["starts"]["random"]["scores"]["0.001"]) == 2
    summary = json.loads((workdir / "pretrain.json").read_text())
    assert (summary["tokens"], summary["micro_steps"]) == (5120, 40)
    assert summary["held_out_loss"] < np.log(256)


def test_metrics_cover_the_run(finished):
    first, *lines = metrics_log.read(finished[0] / "metrics.jsonl")
    assert first["event"] == "first_step"
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert lines[-1]["progress"] == 1
    assert lines[-1]["tokens"] == 5120
    assert lines[-1]["batch_size"] == 12
    assert lines[0]["loss"] == pytest.approx(np.log(256), abs=0.3)


def test_a_finished_run_is_not_repeated(finished, tiny, monkeypatch):
    workdir = finished[0]
    before = {p: p.read_bytes() for p in workdir.glob("*.json*")}

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("cramjax.data.prepare.prepare", fail)  # the text may be gone
    monkeypatch.setattr("cramjax.training.train_step.make_micro_step", fail)
    monkeypatch.setattr("cramjax.glue.evaluate.finetune", fail)
    (workdir / "report.md").unlink()
    run(tiny, workdir)
    assert (workdir / "report.md").exists()
    assert {p: p.read_bytes() for p in workdir.glob("*.json*")} == before


def command(workdir, data_dir, *overrides):
    overrides = [f"--config.{o}" for o in (*TINY, f"data.dir={data_dir}", *overrides)]
    return ["--config=configs/small.py", f"--workdir={workdir}", *overrides]


def test_a_workdir_with_another_config_is_refused(finished, data_dir, capsys):
    workdir = finished[0]
    assert main(command(workdir, data_dir, "model.layers=3")) == 2
    error = capsys.readouterr().err
    assert "holds a run with config.model.layers=2, not 3" in error
    assert error.count("\n") == 1


def test_changed_text_is_refused(tmp_path, corpus):
    check_corpus(tmp_path, "books-2")
    note_corpus(tmp_path, corpus)
    check_corpus(tmp_path, corpus.path.name)
    with pytest.raises(UserError, match=r"trained on the corpus books-.*gives books-2"):
        check_corpus(tmp_path, "books-2")


@pytest.mark.parametrize("changed", ["tokenizer", "shard"])
def test_a_corpus_that_was_rebuilt_with_other_ids_is_refused(tmp_path, corpus, changed):
    """It has the same text, settings and name."""
    note_corpus(tmp_path, corpus)
    note_corpus(tmp_path, corpus)
    manifest = json.loads(json.dumps(corpus.manifest))
    if changed == "tokenizer":
        manifest["tokenizer_crc32"] += 1
    else:
        manifest["shards"]["blocks"][0]["crc32"] += 1
    rebuilt = copy.copy(corpus)
    rebuilt.manifest = manifest
    before = (tmp_path / "corpus.json").read_bytes()
    with pytest.raises(UserError, match="rebuilt since .*bring it back, or") as error:
        note_corpus(tmp_path, rebuilt)
    assert "\n" not in str(error.value)
    assert (tmp_path / "corpus.json").read_bytes() == before


def test_a_workdir_in_use_is_refused_at_once(finished, data_dir, tmp_path, capsys):
    """Before anything is read or made; and so is one that is being scored."""
    flags = command(tmp_path / "new", tmp_path / "data")
    (tmp_path / "new").mkdir()
    for folder, given in (
        (tmp_path / "new", flags),
        (finished[0], command(finished[0], data_dir)),
    ):
        with lock_workdir(folder):
            assert main(given) == 2
        assert "is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_two_processes_do_not_train_in_one_workdir(tmp_path):
    for _ in range(2):
        with (
            lock_workdir(tmp_path),
            pytest.raises(UserError, match="in use by another process"),
            lock_workdir(tmp_path),
        ):
            pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoints", r"no checkpoint beside it: bring .*checkpoints back"),
        ("tokenizer.json", r"tokenizer\.json cannot be read.*copy it from"),
        ("corpus.json", r"corpus\.json cannot be read.*copy it from"),
    ],
)
def test_what_is_missing_in_a_finished_workdir_is_named(
    finished, tiny, tmp_path, name, message
):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    if name == "checkpoints":
        shutil.rmtree(workdir / name)
        run(tiny, workdir)  # the small files are enough
        (workdir / "weights-ema.safetensors").unlink()
    else:
        (workdir / name).unlink()
    with pytest.raises(UserError, match=message):
        run(tiny, workdir)


def test_weights_that_did_not_fit_on_the_disk_are_written_later(
    finished, data_dir, tmp_path, monkeypatch, capsys
):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    names = [f"weights{name}.safetensors" for name in ("", "-ema", "-lawa")]
    before = [(workdir / name).read_bytes() for name in names]
    for name in names[:2]:
        (workdir / name).unlink()
    full = OSError(errno.ENOSPC, "No space left on device")
    write = files.write_bytes

    def write_some(path, data):
        if path.name == names[1]:
            raise full
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", write_some)
    assert main(command(workdir, data_dir)) == 2
    error = capsys.readouterr().err
    assert "No space left on device: make room, and the same command goes" in error
    monkeypatch.undo()
    assert main(command(workdir, data_dir)) == 0
    assert [(workdir / name).read_bytes() for name in names] == before


# Orbax gives up reading and leaves its event loop with callbacks that nobody awaits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    tiny, corpus, tmp_path, monkeypatch
):
    """Each of its files is damaged in tests/faults/test_damage.py."""
    checkpointing = dataclasses.replace(tiny.checkpoint, every_minutes=1e-9)
    config = dataclasses.replace(tiny, checkpoint=checkpointing)
    stop_after(11, config, corpus, tmp_path, monkeypatch)
    before, last = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    folder = tmp_path / "checkpoints" / str(last)
    for path in folder.glob("state/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{folder} cannot be read .*: delete it") as e:
        pretrain.pretrain(tiny, corpus, tmp_path)
    assert "\n" not in str(e.value)
    shutil.rmtree(folder)
    _, summary = pretrain.pretrain(tiny, corpus, tmp_path)
    assert before < summary["micro_steps"] == 40


def test_too_large_a_model_is_one_line(corpus, tmp_path, data_dir):
    """A table of learned positions that no machine can hold."""
    config = tiny_config(data_dir, "model.ffn_width=200000000000")
    with pytest.raises(UserError, match=r"config\.micro_batch is 4: too much for the"):
        pretrain.pretrain(config, corpus, tmp_path)


def test_glue_keys_may_change_until_there_are_scores(finished, data_dir, tmp_path):
    workdir = finished[0]
    changed = tiny_config(data_dir, "glue.epochs=2")
    with pytest.raises(UserError, match=r"glue\.epochs=1, not 2.*delete .*glue\.json"):
        check_workdir(workdir, changed)
    check_workdir(workdir, tiny_config(data_dir, "glue.data_dir=elsewhere"))
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    check_workdir(tmp_path, changed)


def test_a_damaged_config_in_the_workdir_is_named(tmp_path, tiny):
    for text in ('{"seed": ', "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json .*another --workdir"):
            check_workdir(tmp_path, tiny)


def test_a_workdir_that_is_a_file_is_refused(tmp_path, data_dir, capsys):
    (tmp_path / "w").touch()
    for workdir in (tmp_path / "w", tmp_path / "w" / "sub"):
        assert main(command(workdir, data_dir)) == 2
        assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("platform=gpu", "config.platform is 'gpu': must be 'any' where JAX sees only"),
        ("data.dir=setup.cfg", "config.data.dir is 'setup.cfg': cannot be written"),
        ("data.sources=()", "config.data.sources is (): must be the text to train on"),
        ("data.sources=nowhere.txt", "'nowhere.txt' matches no file"),
        ("glue.tasks=('colla',)", "config.glue.tasks: 'colla'"),
        ("glue.batch_size=64", "config.glue.batch_size is 64: Intents"),
        ("model.vocab_size=65000", "the corpus allows at most"),
    ],
)
def test_a_mistake_costs_no_compute(tmp_path, data_dir, override, message, capsys):
    workdir = tmp_path / "w"
    assert main(command(workdir, data_dir, override)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not workdir.exists()


def test_cudnn_attention_without_a_gpu_is_refused(data_dir):
    config = tiny_config(data_dir, "model.attention=cudnn", "model.dtype=bfloat16")
    with pytest.raises(UserError, match=r"config\.model\.attention is 'cudnn'"):
        check_platform(config)


def test_a_gpu_config_that_is_pretrained_is_evaluated_without_a_gpu(
    finished, data_dir, tmp_path
):
    """Only pretraining needs the card: the scores may be made elsewhere."""
    values = config_module.to_dict(tiny_config(data_dir)) | {"platform": "gpu"}
    config = config_module.from_dict(values)
    path = finished[0] / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(values))
    try:
        run(config, finished[0])
    finally:
        path.write_text(before)
    with pytest.raises(UserError, match=r"config\.platform"):
        run(config, tmp_path / "fresh")

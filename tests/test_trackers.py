"""Trackers beside metrics.jsonl: stubs that saw every call, and the real ones."""

import contextlib
import dataclasses
import gzip
import importlib.machinery
import json
import os
import sqlite3
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cramjax import trackers
from cramjax.config import TRACKERS, flatten, record, to_dict
from cramjax.errors import TrainingFailed, UserError
from cramjax.run import check, run
from cramjax.training import log as metrics_log
from cramjax.training.log import MetricsLog

LINE = {"step": 5, "loss": 1.5, "learning_rate": 1e-3, "peak_memory_bytes": 7}
OF_FINETUNING = {
    "task": "cola",
    "start": "pretrained",
    "rate": 4e-5,
    "trials": [3, 4],
    "epoch": 1,
    "loss": [0.5, None],
    "scores": {"cola": {"matthews": [10.0, 20.0]}},
}


def with_keys(config, *names, **keys):
    log = dataclasses.replace(config.log, trackers=names)
    return dataclasses.replace(config, log=log, **keys)


class Stub(types.ModuleType):
    """Stands for wandb or trackio."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **arguments):
        self.started.append(arguments)
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


@pytest.fixture
def stubs(monkeypatch):
    found = {name: Stub(name) for name in ("wandb", "trackio")}
    for name, stub in found.items():
        monkeypatch.setitem(sys.modules, name, stub)
    return found


def test_a_resumed_run_goes_on_in_its_trackers(tiny, corpus, tmp_path, stubs):
    glue = dataclasses.replace(tiny.glue, tasks=())
    profile = dataclasses.replace(tiny.profile, steps=(10, 15))
    config = with_keys(tiny, *stubs, glue=glue, profile=profile)
    guard = dataclasses.replace(tiny.guard, max_loss=0.1, max_loss_after=0.5)
    with pytest.raises(TrainingFailed):
        run(dataclasses.replace(config, guard=guard), tmp_path)
    run(config, tmp_path)

    lines = metrics_log.read(tmp_path / "metrics.jsonl")
    wandb, trackio = stubs.values()
    assert wandb.logged == trackio.logged
    losses = [(step, x["train/loss"]) for step, x in wandb.logged if "train/loss" in x]
    assert losses == [(x["step"], x["loss"]) for x in lines if "event" not in x]
    assert sum("resumed/elapsed_s" in numbers for _, numbers in wandb.logged) == 1
    summary = json.loads((tmp_path / "pretrain.json").read_text())
    assert wandb.logged[-1][1]["final/held_out_loss"] == summary["held_out_loss"]
    for stub in stubs.values():
        first, second = stub.started
        (
            first["config"].pop("guard.max_loss"),
            first["config"].pop("guard.max_loss_after"),
        )
        assert first["config"].items() <= second["config"].items()
        assert second["config"] == flatten(to_dict(config))
        assert first["name"] == second["name"] and second["resume"] == "allow"
        assert stub.finished == 2
    assert not metrics_log.SINKS
    # The trace has the five steps, whole.
    [trace] = tmp_path.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    calls = [name for name in names if name.endswith("ExecuteHelperOnSingleDevice")]
    assert len(calls) == 5


def test_numbers_have_the_names_of_what_was_measured(tiny, tmp_path, stubs):
    with (
        trackers.Trackers(with_keys(tiny, "trackio"), tmp_path),
        MetricsLog(tmp_path / "metrics.jsonl") as log,
        MetricsLog(tmp_path / "finetune.jsonl") as finetuning,
    ):
        log.write(**LINE)
        log.write(
            event="validation", step=5, loss=2.0, why="text", averages={"ema": 1.9}
        )
        finetuning.write(**OF_FINETUNING)
    start = "finetune/cola/pretrained/4e-05"
    assert stubs["trackio"].logged == [
        (5, {f"train/{name}": LINE[name] for name in LINE if name != "step"}),
        (5, {"validation/loss": 2.0, "validation/averages.ema": 1.9}),
        (
            6,
            {
                f"{start}/epoch": 1,
                f"{start}/loss/3": 0.5,
                f"{start}/scores.cola.matthews/3": 10.0,
                f"{start}/scores.cola.matthews/4": 20.0,
            },
        ),
    ]
    assert trackers.Trackers(tiny, tmp_path)._step == 6  # fine-tuning counts on


def test_a_tracker_that_fails_ends_nothing(tiny, tmp_path, stubs, said):
    wandb, trackio = stubs.values()
    wandb.init = lambda **_: 1 / 0
    trackio.finish = lambda: 1 / 0
    with (
        trackers.Trackers(with_keys(tiny, *stubs), tmp_path),
        MetricsLog(tmp_path / "metrics.jsonl") as log,
    ):
        log.write(**LINE)
        trackio.log = lambda *_: 1 / 0
        log.write(**LINE)
        log.write(**LINE)
    failed = "gets nothing more of this run: ZeroDivisionError: division by zero"
    assert said == [f"wandb {failed}", f"trackio {failed}"]
    assert len(metrics_log.read(tmp_path / "metrics.jsonl")) == 3


def test_a_tracker_that_is_not_installed_is_reported_first(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"wandb': must be .* pip install -e '.\[wandb"):
        check(with_keys(tiny, "wandb"), tmp_path / "new")


SESSIONS = """
import pathlib, sys
sys.path.append("tests")
from cramjax import config
import test_trackers
workdir = pathlib.Path(sys.argv[1])
values = config.read_recorded(workdir / "config.json", "")
test_trackers.log_twice(config.from_dict(values), workdir)
"""


def log_twice(config, workdir):
    """Logs steps 5 and 10, and in another session goes back to 5 and on to 15."""
    for steps in ((5, 10), (10, 15)):
        with (
            trackers.Trackers(config, workdir) as tracking,
            MetricsLog(workdir / "metrics.jsonl") as log,
        ):
            if steps[0] == 10:
                log.cut(5, event="resumed", step=5, elapsed_s=1.0)
            for step in steps:
                log.write(step=step, loss=step / 10 + len(metrics_log.SINKS))
    assert set(tracking._running) == set(config.log.trackers)


def test_tensorboard_reads_a_resumed_run(tiny, tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    log_twice(with_keys(tiny, "tensorboard"), tmp_path)
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [x.step for x in read.Scalars("train/loss")] == [5, 10, 15]
    [text] = read.Tensors("config/text_summary")[:1]
    assert b'"optimizer.name": "adamw"' in text.tensor_proto.string_val[0]


def test_wandb_writes_both_sessions_of_one_run(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_twice(with_keys(tiny, "wandb"), tmp_path)
    name = (tmp_path / trackers.NAME).read_text()
    files = list(tmp_path.glob(f"wandb/offline-run-*/run-{name[-8:]}.wandb"))
    assert files and all(b"train/loss" in file.read_bytes() for file in files)


def test_trackio_has_both_sessions_in_one_run(tiny, tmp_path):
    """In a process of its own: trackio reads its folder when it is imported."""
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": "."}
    record(tmp_path / "config.json", with_keys(tiny, "trackio"))
    subprocess.run([sys.executable, "-c", SESSIONS, tmp_path], env=env, check=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio/cramjax.db")) as db:
        rows = db.execute("select run_id, step, metrics from metrics").fetchall()
    steps = [step for _, step, numbers in rows if b"train/loss" in numbers]
    assert len({run for run, _, _ in rows}) == 1 and steps == [5, 10, 10, 15]


def test_every_tracker_has_an_extra():
    text = Path("setup.cfg").read_text()
    assert all(f"\n{name} =" in text for name in TRACKERS)

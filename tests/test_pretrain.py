"""Pretraining: stopped, resumed, gone wrong, and on time."""

import dataclasses
import errno
import os
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import tiny_config

from cramjax.data import order as ordering
from cramjax.device.compile import abstract
from cramjax.errors import Interrupted, TrainingFailed, UserError
from cramjax.model.flops import train_flops_per_token
from cramjax.training import (
    checkpoint,
    loop,
    pretrain,
    train_step,
    validation,
)
from cramjax.training import log as metrics_log


def stop_after(step, config, corpus, workdir, monkeypatch):
    """Pretrains until SIGINT comes after a step."""

    def text_then_signal(clock, *_, **__):
        if clock.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return ""

    monkeypatch.setattr(loop, "progress_text", text_then_signal)
    with pytest.raises(Interrupted, match="SIGINT.*the same command goes on") as error:
        pretrain.pretrain(config, corpus, workdir)
    assert error.value.exit_code == 130
    monkeypatch.undo()


def saved_state(config, workdir):
    with checkpoint.CheckpointStore(
        workdir / "checkpoints", config.checkpoint
    ) as store:
        like = abstract(
            lambda: train_step.init_state(config),
            train_step.replicated(train_step.make_mesh()),
        )
        return store.restore(store.latest_step(), like)[0]


@pytest.mark.parametrize(("stop_at", "mini_step"), [(11, 1), (27, 2), (40, 0)])
def test_stop_and_resume_equals_the_uninterrupted_run_bitwise(
    finished, tiny, corpus, tmp_path, monkeypatch, stop_at, mini_step
):
    """In the middle of an accumulation, and at the very end."""
    stop_after(stop_at, tiny, corpus, tmp_path, monkeypatch)
    assert not (tmp_path / "pretrain.json").exists()
    assert saved_state(tiny, tmp_path).opt_state.mini_step == mini_step
    weights, summary = pretrain.pretrain(tiny, corpus, tmp_path)

    expected_weights, expected = pretrain.read_back(tiny, finished[0])
    for a, b in zip(
        jax.tree.leaves(weights), jax.tree.leaves(expected_weights), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for key in ("tokens", "micro_steps", "updates", "held_out_loss", "train_loss"):
        assert summary[key] == expected[key]
    timeless = ("step", "loss", "learning_rate", "grad_norm", "batch_size")
    lines, expected_lines = (
        [
            [line[key] for key in timeless]
            for line in metrics_log.read(folder / "metrics.jsonl")
            if "event" not in line
        ]
        for folder in (tmp_path, finished[0])
    )
    assert lines == expected_lines


def test_a_curriculum_of_lengths_and_masking_rates_resumes_bitwise(
    corpus, tmp_path, data_dir, monkeypatch
):
    """Stopped in the second of three stages; 40 blocks' tokens are the budget."""
    config = tiny_config(
        data_dir,
        "model.layers=1",  # compiles faster
        "curriculum.lengths=(8,16,32)",
        "curriculum.starts=(0.0,0.25,0.5)",
        "curriculum.unfold=False",
        "objective.final_mask_rate=0.125",
        "objective.mask_rate=0.25",
    )
    whole, summary = pretrain.pretrain(config, corpus, tmp_path / "whole")
    # 1280 tokens at 4 x 8, 1280 at 4 x 16, 2560 at 4 x 32.
    assert summary["micro_steps"] == 41 + 20 + 20
    assert summary["tokens"] == 41 * 32 + 20 * 64 + 20 * 128
    flops = [
        rows * train_flops_per_token(config.model, 0.25, length)
        for rows, length in ((41 * 32, 8), (20 * 64, 16), (20 * 128, 32))
    ]
    assert summary["model_flops"] == pytest.approx(sum(flops), rel=1e-12)
    assert summary["passes"] == 81 * 4 / len(corpus.train)

    stop_after(50, config, corpus, tmp_path / "stopped", monkeypatch)
    resumed, again = pretrain.pretrain(config, corpus, tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    for key in ("held_out_loss", "averages", "model_flops", "micro_steps"):
        assert again[key] == summary[key]


def break_steps(monkeypatch, bad):
    """Makes the numbers of the micro-steps bad(step) not finite."""
    make = train_step.make_micro_step

    def make_breaking(config, mesh):
        micro_step = make(config, mesh)

        def breaking(state, tokens, progress):
            if bad(int(state.step)):
                progress = np.float32(np.nan)
                broken = state.params["final_norm"]["scale"] * np.nan
                whole = state.params["final_norm"]["scale"] + 0
                state.params["final_norm"]["scale"] = broken
                state, metrics = micro_step(state, tokens, np.float32(0.5))
                state.params["final_norm"]["scale"] = whole
                return state, metrics
            return micro_step(state, tokens, progress)

        breaking._cache_size = micro_step._cache_size
        return breaking

    monkeypatch.setattr(train_step, "make_micro_step", make_breaking)


def test_gradients_that_are_not_finite_roll_back_once_and_lower_the_rate(
    finished, corpus, tmp_path, data_dir, monkeypatch
):
    """Steps 12 to 14 are bad, once: back to the checkpoint of step 11."""
    config = tiny_config(data_dir, "guard.max_bad_steps=3")
    stop_after(11, config, corpus, tmp_path, monkeypatch)
    left = [12, 13, 14]

    def bad(step):
        return step in left and not left.remove(step)

    break_steps(monkeypatch, bad)
    _, summary = pretrain.pretrain(config, corpus, tmp_path)
    assert (summary["micro_steps"], summary["tokens"]) == (40, 5120)
    lines = metrics_log.read(tmp_path / "metrics.jsonl")
    events = [line["event"] for line in lines if "event" in line]
    # The second session's first step is among those that are undone.
    assert events == ["first_step", "stopped", "resumed", "stepped_back"]
    assert summary["seconds"]["lost"] > 0
    expected = metrics_log.read(finished[0] / "metrics.jsonl")[-1]
    assert lines[-1]["learning_rate"] == pytest.approx(expected["learning_rate"] / 2)
    dump = next(tmp_path.glob("bad_batch-*.npz"))
    with np.load(dump) as batch:
        stream = ordering.BlockStream(corpus, config.data.order, config.seed)
        position = int(batch["position"])
        assert (position, int(batch["step"])) == (14 * 4, 14)
        np.testing.assert_array_equal(batch["tokens"], stream.take(position, 4))


def test_a_run_stopped_at_its_bad_limit_can_be_resumed(
    corpus, tmp_path, data_dir, monkeypatch
):
    """The counters say that the limit is reached, of a step of the session before."""
    config = tiny_config(data_dir, "guard.max_bad_steps=1")
    break_steps(monkeypatch, lambda step: step == 10)
    stop_after(11, config, corpus, tmp_path, monkeypatch)
    _, summary = pretrain.pretrain(config, corpus, tmp_path)
    assert (summary["micro_steps"], summary["skipped"]) == (40, 1)


def test_bad_numbers_twice_stop_the_run(corpus, tmp_path, data_dir, monkeypatch):
    config = tiny_config(data_dir, "guard.max_bad_steps=3")
    break_steps(monkeypatch, lambda step: step >= 5)
    with pytest.raises(TrainingFailed, match="not finite.*bad_batch-.*already lowered"):
        pretrain.pretrain(config, corpus, tmp_path)


def test_a_loss_that_stays_high_stops_the_run(corpus, tmp_path, data_dir):
    config = tiny_config(data_dir, "guard.max_loss=1.0", "guard.max_loss_after=0.5")
    with pytest.raises(TrainingFailed, match=r"after 50\.0% of the budget, above"):
        pretrain.pretrain(config, corpus, tmp_path)
    assert saved_state(config, tmp_path).step == 20


def test_validation_during_training_changes_nothing(
    finished, corpus, tmp_path, data_dir, monkeypatch, capsys
):
    config = tiny_config(data_dir, "validation.every_minutes=1e-9")

    def slow(*args):
        time.sleep(0.05)
        return validation.score(*args)

    monkeypatch.setattr(loop, "score", slow)
    weights, summary = pretrain.pretrain(config, corpus, tmp_path)
    expected_weights, expected = pretrain.read_back(config, finished[0])
    jax.tree.map(np.testing.assert_array_equal, weights, expected_weights)
    lines = metrics_log.read(tmp_path / "metrics.jsonl")
    scored = [line for line in lines if line.get("event") == "validation"]
    assert len(scored) == 40
    assert scored[-1]["loss"] == summary["held_out_loss"] == expected["held_out_loss"]
    out = capsys.readouterr().out
    for line in scored:
        assert f"held-out loss {line['loss']:.3f} nats (unigram entropy: " in out
    assert f"after {scored[0]['tokens']:,} tokens, 2.5% of the budget\n" in out
    assert scored[0]["loss"] > scored[-1]["loss"]
    assert summary["seconds"]["validation"] > 40 * 0.05  # outside the budget


def test_a_timer_counts_minutes(monkeypatch):
    now = [0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    timer, never, due = loop.Timer(2), loop.Timer(0), []
    for now[0] in range(0, 400, 30):
        assert not never.is_due()
        due += [now[0]] * timer.is_due()
    assert due == [150, 300]


def signal_before(monkeypatch, owner, name, call):
    """Makes SIGTERM arrive right before the call-th call of owner.name."""
    original, calls = getattr(owner, name), []

    def signalling(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalling)


# The first two are also among the faults of tests/faults.
@pytest.mark.parametrize(
    "moment",
    [
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("compile", "checkpoint")),
        "validation",
    ],
)
def test_sigterm_at_bad_moments_ends_cleanly_and_resumes(
    finished, tiny, corpus, tmp_path, data_dir, monkeypatch, moment
):
    config = tiny_config(
        data_dir, "validation.every_minutes=1e-9", "checkpoint.every_minutes=1e-9"
    )
    if moment == "compile":  # the step is traced, and then compiled, after this
        signal_before(monkeypatch, train_step, "mask_tokens", 1)
    if moment == "checkpoint":
        signal_before(monkeypatch, checkpoint.CheckpointStore, "save", 3)
    if moment == "validation":
        signal_before(monkeypatch, loop, "score", 3)
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as error:
        pretrain.pretrain(config, corpus, tmp_path)
    assert error.value.exit_code == 143
    monkeypatch.undo()
    weights, summary = pretrain.pretrain(tiny, corpus, tmp_path)
    expected_weights, expected = pretrain.read_back(tiny, finished[0])
    jax.tree.map(np.testing.assert_array_equal, weights, expected_weights)
    assert summary["tokens"] == expected["tokens"]


def test_a_checkpoint_at_every_step_finishes(corpus, tmp_path, data_dir):
    """Also at the last step, which is then saved twice."""
    config = tiny_config(data_dir, "checkpoint.every_minutes=1e-9", "budget.tokens=384")
    _, summary = pretrain.pretrain(config, corpus, tmp_path)
    assert summary["micro_steps"] == 3
    weights, summary_read = pretrain.read_back(config, tmp_path)
    assert summary_read == summary
    assert weights["pretrained"]["final_norm"]["scale"].shape == (32,)
    # Killed after its last checkpoint, it is finished again without a second last line.
    (tmp_path / "pretrain.json").unlink()
    pretrain.pretrain(config, corpus, tmp_path)
    lines = metrics_log.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "event" not in line] == [3]


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_nothing(corpus, tmp_path, data_dir, monkeypatch, capsys):
    """No room at three steps, nor twice at the end."""
    config = tiny_config(data_dir, "checkpoint.every_minutes=1e-9", "budget.tokens=384")
    free = [0, 0, 0, 0, 0, 10**9]

    def disk_usage(path):
        assert path == tmp_path / "checkpoints"
        return SimpleNamespace(free=free.pop(0))

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(checkpoint, "WAIT_S", 0.2)
    _, summary = pretrain.pretrain(config, corpus, tmp_path)
    assert summary["micro_steps"] == saved_state(config, tmp_path).step == 3
    assert summary["seconds"]["idle"] >= 0.4  # not charged
    said = [x for x in capsys.readouterr().out.splitlines() if "a checkpoint" in x]
    assert [line.rpartition("; ")[2] for line in said] == [
        *["training goes on, check the disk"] * 3,
        "trying again until you press Ctrl-C",
    ]
    assert "it takes 0.6 MB, 0.0 MB are free" in said[0]


def test_a_write_that_fails_in_the_background_is_done_again(
    corpus, tmp_path, data_dir, monkeypatch, capsys
):
    """Orbax reports it at the next call: at a later step's, or at the end."""
    config = tiny_config(data_dir, "checkpoint.every_minutes=1e-9", "budget.tokens=384")
    failures = iter([False, True, False, True, True])
    save = checkpoint.ocp.CheckpointManager.save

    def failing(self, *args, **kwargs):
        if next(failures, False):
            raise ValueError(f"RESOURCE_EXHAUSTED: Error writing: {FULL}")
        return save(self, *args, **kwargs)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", failing)
    monkeypatch.setattr(checkpoint, "WAIT_S", 0.01)
    pretrain.pretrain(
        dataclasses.replace(
            config, budget=dataclasses.replace(config.budget, tokens=512)
        ),
        corpus,
        tmp_path,
    )
    assert saved_state(config, tmp_path).step == 4
    said = [x for x in capsys.readouterr().out.splitlines() if "a checkpoint" in x]
    assert [line.rpartition("; ")[2] for line in said] == [
        *["training goes on, check the disk"] * 2,
        "trying again until you press Ctrl-C",
    ]


def test_a_checkpoint_that_fails_in_the_background_leaves_the_one_before(
    tiny, tmp_path, monkeypatch
):
    """With one checkpoint to keep; and it leaves no files behind."""
    folder, rename = tmp_path / "checkpoints", os.rename

    def failing(source, target, **options):
        if str(target).endswith("/2"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target, **options)

    config = dataclasses.replace(tiny.checkpoint, keep=1)
    state = {"x": np.arange(4)}
    with checkpoint.CheckpointStore(folder, config) as store:
        store.save(1, state, {})
        store.wait()
        monkeypatch.setattr(os, "rename", failing)
        store.save(2, state, {})
        store.wait()
        assert store.latest_step() == 1
        assert [path.name for path in folder.iterdir()] == ["1"]
        store.save(3, state, {})
        store.wait()
        assert store.steps() == [3]


def test_waiting_for_room_is_given_up_by_hand_only(
    corpus, tmp_path, data_dir, monkeypatch
):
    config = tiny_config(data_dir, "budget.tokens=384")
    numbers = [signal.SIGHUP, signal.SIGHUP, signal.SIGINT]
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=0)
    )
    monkeypatch.setattr(
        checkpoint.time, "sleep", lambda _: os.kill(os.getpid(), numbers.pop(0))
    )
    with pytest.raises(
        UserError, match="a checkpoint.* not saved.* goes on from step 0"
    ):
        pretrain.pretrain(config, corpus, tmp_path)
    assert numbers == []


def test_a_budget_that_was_lost_in_whole_is_no_result(corpus, tmp_path, data_dir):
    config = tiny_config(data_dir, "budget.tokens=0", "budget.hours=0.002")
    with metrics_log.MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(step=100, elapsed_s=60.0)
    with pytest.raises(UserError, match="went to work that was lost, nothing is train"):
        pretrain.pretrain(config, corpus, tmp_path)
    assert not (tmp_path / "pretrain.json").exists()


def test_work_lost_since_the_checkpoint_is_charged(tiny, corpus, tmp_path, monkeypatch):
    stop_after(3, tiny, corpus, tmp_path, monkeypatch)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # and then a crash
        file.write('{"step": 9, "elapsed_s": 1000.0}\n')
    _, summary = pretrain.pretrain(tiny, corpus, tmp_path)
    assert 1000 < summary["elapsed_s"] < 1060
    assert 940 < summary["seconds"]["lost"] <= 1000
    assert summary["micro_steps"] == 40
    lines = metrics_log.read(tmp_path / "metrics.jsonl")
    steps = [line["step"] for line in lines if "event" not in line]
    assert steps == [
        5,
        10,
        15,
        20,
        25,
        30,
        35,
        40,
    ]


def test_a_wall_clock_budget_stops_within_a_step(finished, corpus, tmp_path, data_dir):
    del finished  # it has compiled the step
    config = tiny_config(data_dir, "budget.tokens=0", "budget.hours=0.002")
    _, summary = pretrain.pretrain(config, corpus, tmp_path)
    # A step takes milliseconds: the bound leaves room for a busy machine only.
    assert 7.2 <= summary["elapsed_s"] < 12
    assert summary["tokens"] == summary["micro_steps"] * 4 * 32

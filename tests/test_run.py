"""Whole small runs, in-process."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import TINY, tiny_config

from cramjax import (
    checkpoint,
    loop,
    metrics_log,
    pretrain,
    progress,
    schedules,
    schema,
    train_step,
    validation,
)
from cramjax import config as config_module
from cramjax.data import ordering
from cramjax.errors import Interrupted, TrainingFailed, UserError
from cramjax.flops import train_flops_per_token
from cramjax.main import main
from cramjax.run import (
    check_corpus,
    check_platform,
    check_workdir,
    in_use,
    more_than_one_pass,
    note_corpus,
    run,
)


@pytest.fixture(scope="module")
def finished(tiny, corpus, tmp_path_factory):
    """A finished run, and the config keys its code has read."""
    reads = set()
    patch = pytest.MonkeyPatch()
    schema_folder = os.path.dirname(schema.__file__)
    sections = {f.name: f.type for f in dataclasses.fields(schema.Config)}
    classes = [(schema.Config, "")]
    classes += [
        (c, f"{n}.") for n, c in sections.items() if dataclasses.is_dataclass(c)
    ]
    for cls, prefix in classes:

        def recording(self, name, prefix=prefix):
            # Reads by the parser, and by generated __eq__ and __hash__, do not count;
            # those by the schema's own properties are reads of whoever asks for them.
            frame = sys._getframe(1)
            while frame.f_code.co_filename.startswith(schema_folder):
                frame = frame.f_back
            caller = frame.f_code.co_filename
            if caller.startswith("/") and caller != config_module.__file__:
                reads.add(prefix + name)
            return object.__getattribute__(self, name)

        patch.setattr(cls, "__getattribute__", recording, raising=False)
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    jax.clear_caches()  # what was traced by another test would not be read again
    try:
        run(tiny, workdir)
        for curve in schedules.CURVES:  # a key may belong to one of them
            other = dataclasses.replace(tiny.schedule, curve=curve, warmup=0.1)
            schedules.factor(np.float32(0.5), other)
    finally:
        patch.undo()
    return workdir, reads


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
    assert "Intents, 10 labels a class | accuracy | 32 of 2,088" in report
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

    monkeypatch.setattr("cramjax.run.prepare", fail)  # the text may be gone
    monkeypatch.setattr("cramjax.train_step.make_micro_step", fail)
    monkeypatch.setattr("cramjax.glue.evaluate.finetune", fail)
    (workdir / "report.md").unlink()
    run(tiny, workdir)
    assert (workdir / "report.md").exists()
    assert {p: p.read_bytes() for p in workdir.glob("*.json*")} == before


def stop_after(step, config, corpus, workdir, monkeypatch):
    """Pretrains until SIGINT comes after a step."""
    update = loop.Progress.update

    def update_then_signal(self, clock, counters, line):
        update(self, clock, counters, line)
        if counters.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Progress, "update", update_then_signal)
    with pytest.raises(Interrupted, match="SIGINT.*the same command goes on") as error:
        pretrain.pretrain(config, corpus, workdir)
    assert error.value.exit_code == 130
    monkeypatch.undo()


def saved_state(config, workdir):
    with checkpoint.CheckpointStore(
        workdir / "checkpoints", config.checkpoint
    ) as store:
        like = checkpoint.abstract(
            lambda: train_step.init_state(config),
            train_step.replicated(train_step.make_mesh()),
        )
        return store.state(store.latest_step(), like)


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


def test_bad_numbers_step_back_once_and_lower_the_rate(
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
        np.testing.assert_array_equal(batch["tokens"], stream.batch(position, 4))


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
    finished, corpus, tmp_path, data_dir, monkeypatch
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
    assert scored[0]["loss"] > scored[-1]["loss"]
    assert summary["seconds"]["validation"] > 40 * 0.05  # outside the budget


def signal_before(monkeypatch, owner, name, call):
    """Makes SIGTERM arrive right before the call-th call of owner.name."""
    original, calls = getattr(owner, name), []

    def signalling(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalling)


@pytest.mark.parametrize("moment", ["compile", "checkpoint", "validation"])
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
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]  # what was lost is not told twice


def test_a_cut_log_forgets_what_will_be_measured_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics_log.MetricsLog(path) as log:
        for step in range(1, 5):
            log.write(step=step, elapsed_s=10.0 * step)
    with path.open("a") as file:
        file.write('{"step": 5, "elap')  # killed here
    with metrics_log.MetricsLog(path) as log:
        log.cut(2, event="resumed", step=2, elapsed_s=40.0)
    assert [line["step"] for line in metrics_log.read(path)] == [1, 2, 2]


class Clock:
    """A clock that was asked at a share of the budget."""

    def __init__(self, used, tokens):
        self.used, self.tokens = used, tokens

    def progress(self):
        return self.used


def test_a_budget_of_hours_says_how_many_passes_once_it_knows(tiny, capsys):
    counters = SimpleNamespace(latest={"skipped": 0}, window=[], last_loss=None)
    hours = dataclasses.replace(tiny.budget, tokens=0, hours=1.0)
    for budget, corpus_tokens, expected in (
        (hours, 400, "at this speed 2.5 passes over the corpus"),
        (hours, 1010, None),  # less than one
        (tiny.budget, 400, None),  # of tokens: known, and said, beforehand
    ):
        shown = progress.Progress(budget, corpus_tokens)
        with shown:
            for used, tokens in ((0.0, 0), (0.04, 40), (0.1, 100), (0.2, 200)):
                shown.update(Clock(used, tokens), counters, {})
        lines = [
            line for line in capsys.readouterr().out.splitlines() if "pass" in line
        ]
        assert len(lines) == (expected is not None)
        assert not expected or expected in lines[0]


def test_a_wall_clock_budget_stops_within_a_step(finished, corpus, tmp_path, data_dir):
    del finished  # it has compiled the step
    config = tiny_config(data_dir, "budget.tokens=0", "budget.hours=0.002")
    _, summary = pretrain.pretrain(config, corpus, tmp_path)
    # A step takes milliseconds: the bound leaves room for a busy machine only.
    assert 7.2 <= summary["elapsed_s"] < 12
    assert summary["tokens"] == summary["micro_steps"] * 4 * 32


def command(workdir, data_dir, *overrides):
    overrides = [f"--config.{o}" for o in (*TINY, f"data.dir={data_dir}", *overrides)]
    return ["--config=configs/quickstart.py", f"--workdir={workdir}", *overrides]


def test_a_workdir_with_another_config_is_refused(finished, data_dir, capsys):
    workdir = finished[0]
    assert main(command(workdir, data_dir, "model.layers=3")) == 2
    error = capsys.readouterr().err
    assert "holds a run with config.model.layers=2, not 3" in error
    assert error.count("\n") == 1


def test_several_passes_are_said(tiny, corpus):
    there = len(corpus.train) * 32
    per_token = train_flops_per_token(tiny.model, tiny.objective.mask_rate)
    for budget, expected in (
        ({"tokens": there}, ""),
        ({"tokens": 3 * there}, f"{3 * there:,} tokens, 3.0 passes"),
        ({"flops": 2.5 * there * per_token}, "2.5 passes over"),
        ({"hours": 9e9}, ""),
    ):
        none = {"hours": 0.0, "tokens": 0, "flops": 0.0}
        config = dataclasses.replace(tiny, budget=schema.BudgetConfig(**none | budget))
        line = more_than_one_pass(config, corpus)
        assert expected in line and bool(expected) == bool(line)


def test_changed_text_is_refused(tmp_path, corpus):
    check_corpus(tmp_path, "books-2")
    note_corpus(tmp_path, corpus)
    check_corpus(tmp_path, corpus.path.name)
    with pytest.raises(UserError, match=r"trained on the corpus books-.*gives books-2"):
        check_corpus(tmp_path, "books-2")


def test_two_processes_do_not_train_in_one_workdir(tmp_path):
    for _ in range(2):
        with (
            in_use(tmp_path),
            pytest.raises(UserError, match="in use by another process"),
            in_use(tmp_path),
        ):
            pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoints", r"no checkpoint beside it: bring .*checkpoints back"),
        ("tokenizer.json", r"tokenizer\.json cannot be read.*bring it back"),
        ("corpus.json", r"corpus\.json cannot be read.*bring it back"),
    ],
)
def test_what_is_missing_in_a_finished_workdir_is_named(
    finished, tiny, tmp_path, name, message
):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    if name == "checkpoints":
        shutil.rmtree(workdir / name)
    else:
        (workdir / name).unlink()
    with pytest.raises(UserError, match=message):
        run(tiny, workdir)


# Orbax gives up reading and leaves its event loop with callbacks that nobody awaits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["state/d/*", "host/metadata"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    tiny, corpus, tmp_path, monkeypatch, damage
):
    checkpointing = dataclasses.replace(tiny.checkpoint, every_minutes=1e-9)
    config = dataclasses.replace(tiny, checkpoint=checkpointing)
    stop_after(11, config, corpus, tmp_path, monkeypatch)
    before, last = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    folder = tmp_path / "checkpoints" / str(last)
    for path in folder.glob(damage):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{folder} cannot be read .*: delete it") as e:
        pretrain.pretrain(config, corpus, tmp_path)
    assert "\n" not in str(e.value)
    shutil.rmtree(folder)
    _, summary = pretrain.pretrain(config, corpus, tmp_path)
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
        ("glue.tasks=('cola',)", "config.glue.data_dir is 'glue_data'"),
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

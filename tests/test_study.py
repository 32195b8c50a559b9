import dataclasses
import json
import subprocess

import pytest
from conftest import TINY

from cramjax import study_runs
from cramjax.commands import study as study_command
from cramjax.errors import Interrupted, TrainingFailed, UserError
from cramjax.study import Study, load_study, multipliers, page, slug
from cramjax.study_runs import run_study

DONE = {"held_out_loss": 1.0, "tokens": 5, "averages": {}, "seconds": {}}
DONE |= {"model_flops": 1e9, "updates": 1}


@pytest.fixture(autouse=True)
def compared(monkeypatch):
    """The folders that compare.html is about; the runs of these tests are empty."""
    folders = []
    monkeypatch.setattr(study_runs.compare, "write", lambda f, *_: folders.append(f))
    return folders


@pytest.fixture
def study(data_dir):
    return Study(
        config="configs/small.py",
        overrides=(*TINY, f"data.dir={data_dir}", "budget.tokens=640", "glue.tasks=()"),
        rows={"base": (), "same": ()},
        seeds=(0, 1),
    )


def test_a_study_is_resumable_and_compares_pairs(
    study, compared, tmp_path, monkeypatch
):
    """scripts/check_gpu.py runs a whole one; here a run's loss is its seed."""

    def run(config, folder):
        if folder.exists():  # finished
            return
        folder.mkdir(parents=True)
        summary = DONE | {"held_out_loss": float(config.seed)}
        (folder / "pretrain.json").write_text(json.dumps(summary))
        line = {"tokens": 1, "loss": 2.0}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(study_runs, "run", run)
    results = run_study(study, tmp_path)
    assert list(json.loads((tmp_path / "study.json").read_text())) == ["base", "same"]
    assert list(results) == list(study.rows)
    losses = {seed: s["held_out_loss"] for seed, s in results["same"].items()}
    assert losses == {0: 0.0, 1: 1.0}
    assert "| same | 2 | 0.500 (0.000 to 1.000) |" in page(study, results)
    assert "| +0.000 (0.000) |" in page(study, results)
    assert (tmp_path / "study.png").stat().st_size > 10_000
    assert compared == [[tmp_path / row / "seed0" for row in study.rows]]
    assert run_study(study, tmp_path) == results


def test_runs_at_once_are_commands_of_their_own(study, tmp_path, monkeypatch):
    ends = {"base": [0, 0], "same": [2, 0]}
    monkeypatch.setattr(study_runs, "run", pytest.fail)

    def command(argv, stdout, env, **_):
        assert "intra_op_parallelism_threads=1" in env["XLA_FLAGS"]
        folder = tmp_path / argv[-1].removeprefix("--workdir=")
        code = ends[folder.parent.name][seed := int(folder.name[-1])]
        assert f"--config.seed={seed}" in argv
        if code != 3:
            print("a line\nerror: it diverged", file=stdout, flush=True)
        if not code:
            (folder / "pretrain.json").write_text(json.dumps(DONE))
        return subprocess.CompletedProcess(argv, code)

    monkeypatch.setattr(subprocess, "run", command)
    with pytest.raises(TrainingFailed, match="1 of 4 runs .* seed 0: error: it div"):
        run_study(study, tmp_path, at_once=2)
    assert "| same | 1 | 1.000" in (tmp_path / "study.md").read_text()
    ends["same"][0] = -9
    with pytest.raises(TrainingFailed, match="seed 0: ended by signal 9; see .*/out"):
        run_study(study, tmp_path, at_once=2)
    ends["same"][0] = 3
    (tmp_path / "same/seed0/output.txt").unlink()
    with pytest.raises(TrainingFailed, match="seed 0: exit code 3"):
        run_study(study, tmp_path, at_once=2)
    ends["same"][1] = 128 + 15
    with pytest.raises(Interrupted) as interrupted:
        run_study(study, tmp_path, at_once=2)
    assert interrupted.value.exit_code == 128 + 15


def test_rows_have_folders_of_their_own(study):
    assert slug("masking 15 %, all <mask>") == "masking-15-all-mask"
    with pytest.raises(UserError, match="same letters and digits"):
        dataclasses.replace(study, rows={"masking 15": (), "masking 15 %": ()})


def test_a_row_that_fails_does_not_keep_the_others_from_running(
    study, tmp_path, monkeypatch
):
    def run(config, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.parent.name == "base":
            raise TrainingFailed("it diverged")
        (folder / "pretrain.json").write_text(json.dumps(DONE))

    monkeypatch.setattr(study_runs, "run", run)
    with pytest.raises(TrainingFailed, match="2 of 4 runs failed.*base, seed 0: it di"):
        run_study(study, tmp_path)
    assert "| same | 2 | 1.000" in (tmp_path / "study.md").read_text()

    # The next session begins with all there is.
    seen = []
    monkeypatch.setattr(study_runs, "run", lambda *_: seen.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_study(study, tmp_path)
    assert "| same | 2 |" in (tmp_path / "study.md").read_text()
    with pytest.raises(UserError, match="the study has no seeds"):
        Study("c", (), {"a": ()}, ())


def test_every_row_gets_its_first_seed_first(study):
    assert list(study.configs()) == [
        ("base", 0),
        ("same", 0),
        ("base", 1),
        ("same", 1),
    ]


def test_what_is_left_takes_as_long_as_what_is_done(study):
    configs = study.configs()
    flops = study_runs._model_flops(configs["base", 0])
    done = DONE | {"model_flops": flops, "seconds": {"training": 7000.0, "idle": 200.0}}
    text = study_runs._progress(configs, {"base": {0: done}, "same": {}})
    assert text.startswith("1 of 4 runs are done") and text.endswith("about 6 hours")


def test_the_commands_overrides_are_of_all_rows(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        study_runs, "run_study", lambda study, *_: seen.append(study.configs()) or {}
    )
    flags = ["--study=configs/studies/small.py", f"--workdir={tmp_path}"]
    study_command.command([*flags, "--config.model.width=64"])
    assert {config.model.width for config in seen[0].values()} == {64}
    with pytest.raises(UserError, match="--seeds: no such flag; see --help"):
        study_command.command([*flags, "--seeds=3"])


def test_the_table_by_hand():
    rows = {"a": (), "b": ("optimizer.name=muon",), "c": ()}
    study = Study("small", (), rows, (0, 1, 2))

    def runs(losses, ema=None):
        return {
            seed: {
                "held_out_loss": loss,
                "tokens": 10,
                "model_flops": 1e9,
                "updates": 1,
                "averages": {} if ema is None else {"ema": loss - ema},
                "scores": {} if ema is None else {"CoLA, pretrained": 7 + loss},
            }
            for seed, loss in enumerate(losses)
        }

    results = {"a": runs([1.0, 2.0]), "b": runs([1.5, 2.7], 0.2), "c": {}}
    # Muon: 8 kernels of 128 x 128 and 6 of 128 x 256, 5 steps each.
    muon = 5 * (8 * (4 + 2) * 128**3 + 6 * (4 * 2 + 2) * 128**3)
    a, b, ema = page(study, results).splitlines()[2:]
    assert a == "| a | 2 | 1.500 (1.000 to 2.000) | 0.707 | - | - | 10 | 1.00e+09 | - |"
    assert b == (
        "| b | 2 | 2.100 (1.500 to 2.700) | 0.849 | +0.600 (0.141) | - | 10 "
        f"| 1.00e+09 ({1e9 + muon:.2e}) | 9.1 |"
    )
    assert ema == (
        "| b, ema | 2 | 1.900 (1.300 to 2.500) | 0.849 | +0.400 (0.141) | - | 10 | - "
        "| - |"
    )


def test_a_multiplier_by_hand():
    """Losses that fall by 1 with each doubling; the stack's are lower by half of it."""
    rows = {name: () for name in ("a-1", "a-2", "b-1", "b-2", "b-4")}
    curves = {"a": ("a-1", "a-2"), "b": ("b-1", "b-2", "b-4")}
    study = Study("small", (), rows, (0,), [curves])

    def runs(loss, flops):
        return {0: {"held_out_loss": loss, "model_flops": flops, "updates": 1}}

    results = {"a-1": runs(6.0, 1e9), "a-2": runs(5.0, 2e9), "b-1": runs(5.5, 1e9)}
    results |= {"b-2": runs(4.5, 2e9), "b-4": runs(3.5, 4e9)}
    [line] = multipliers(study, results)
    assert line == (
        "b, to reach a's held-out loss of 5.000: model FLOPs divided by 1.41 (with "
        "Muon's, by 1.41)."
    )
    results["a-2"] = runs(3.0, 2e9)
    [line] = multipliers(study, results)
    assert "3.000: outside the range of its own losses" in line
    with pytest.raises(UserError, match="comparisons name 'c', which is no row"):
        Study("small", (), rows, (0,), [{"c": ("c",)}])


def test_a_row_is_compared_with_the_first_of_its_comparison():
    rows = {name: () for name in ("other", "a", "b-1", "b-2")}
    study = Study("small", (), rows, (0,), [{"a": ("a",), "b": ("b-1", "b-2")}])
    summary = {"tokens": 10, "averages": {}, "model_flops": 1e9, "updates": 3}
    losses = {"other": 9.0, "a": 5.0, "b-1": 6.0, "b-2": 4.5}
    results = {n: {0: {"held_out_loss": x, **summary}} for n, x in losses.items()}
    lines = page(study, results).splitlines()[2:6]
    gaps = ["-", "-", "+1.000 (one seed)", "-0.500 (one seed)"]
    assert [line.split(" | ")[4] for line in lines] == gaps


def test_a_wrong_row_costs_no_compute(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study_runs, "run", pytest.fail)
    study.rows["broken"] = ("optimizer.nam=muon",)
    with pytest.raises(UserError, match="did you mean --config.optimizer.name"):
        run_study(study, tmp_path)


def test_study_files(tmp_path):
    wikipedia = ("ladder:S,M,L", "without:M", "plateau", "shapes")
    for name in ("small", "recipe", "best:a4000", *wikipedia):
        load_study(f"studies/{name}").configs()
    rates = {
        c.optimizer.learning_rate
        for c in load_study("studies/ladder:M").configs().values()
    }
    assert rates == {4e-3, 5e-3}
    path = tmp_path / "s.py"
    path.write_text("def get_study(): return 1 / 0")
    with pytest.raises(UserError, match=r"s\.py cannot be run: ZeroDivisionError"):
        load_study(str(path))
    path.write_text("def get_study(): return 1")
    with pytest.raises(UserError, match=r"get_study\(\) must return a Study"):
        load_study(str(path))

import json

import pytest
from conftest import TINY

from cramjax import study as study_module
from cramjax.commands import study as study_command
from cramjax.errors import TrainingFailed, UserError
from cramjax.study import Study, load_study, run_study, table


@pytest.fixture
def study(data_dir):
    return Study(
        config="configs/quickstart.py",
        overrides=(*TINY, f"data.dir={data_dir}", "budget.tokens=640", "glue.tasks=()"),
        rows={"base": (), "same": ()},
        seeds=(0, 1),
    )


def test_a_study_is_resumable_and_compares_pairs(study, tmp_path, monkeypatch):
    results = run_study(study, tmp_path)
    assert json.loads((tmp_path / "study.json").read_text()).keys() == {
        "base",
        "same",
    }
    for seed in (0, 1):  # the same settings, the same seed: the same numbers
        losses = {results[row][seed]["held_out_loss"] for row in study.rows}
        assert len(losses) == 1
    assert results["base"][0]["held_out_loss"] != results["base"][1]["held_out_loss"]
    assert list(results) == list(study.rows)
    assert "| same | 2 |" in table(study, results)
    assert "| +0.000 (0.000) |" in table(study, results)

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("cramjax.run.pretrain", fail)
    assert run_study(study, tmp_path).keys() == results.keys()


def test_a_row_that_fails_does_not_keep_the_others_from_running(
    study, tmp_path, monkeypatch
):
    done = {"held_out_loss": 1.0, "tokens": 5, "averages": {}}

    def run(config, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.parent.name == "base":
            raise TrainingFailed("it diverged")
        (folder / "pretrain.json").write_text(json.dumps(done))

    monkeypatch.setattr(study_module, "run", run)
    with pytest.raises(TrainingFailed, match="2 of 4 runs failed.*base, seed 0: it di"):
        run_study(study, tmp_path)
    assert "| same | 2 | 1.000" in (tmp_path / "study.md").read_text()

    # The next session begins with all there is.
    seen = []
    monkeypatch.setattr(study_module, "run", lambda *_: seen.append(1) or 1 / 0)
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


def test_the_commands_overrides_are_of_all_rows(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        study_module, "run_study", lambda study, _: seen.append(study.configs()) or {}
    )
    flags = ["--study=configs/studies/quickstart.py", f"--workdir={tmp_path}"]
    study_command.command([*flags, "--config.model.width=64"])
    assert {config.model.width for config in seen[0].values()} == {64}
    with pytest.raises(UserError, match="--seeds: no such flag; see --help"):
        study_command.command([*flags, "--seeds=3"])


def test_the_table_by_hand():
    study = Study("c", (), {"a": (), "b": (), "c": ()}, (0, 1, 2))

    def runs(losses, ema=None):
        return {
            seed: {
                "held_out_loss": loss,
                "tokens": 10,
                "averages": {} if ema is None else {"ema": loss - ema},
            }
            for seed, loss in enumerate(losses)
        }

    results = {"a": runs([1.0, 2.0]), "b": runs([1.5, 2.7], 0.2), "c": {}}
    a, b, ema = table(study, results).splitlines()[2:]
    assert (
        ema
        == "| b, ema | 2 | 1.900 (1.300 to 2.500) | 0.849 | +0.400 (0.141) | - | 10 |"
    )
    assert a == "| a | 2 | 1.500 (1.000 to 2.000) | 0.707 | - | - | 10 |"
    assert b == "| b | 2 | 2.100 (1.500 to 2.700) | 0.849 | +0.600 (0.141) | - | 10 |"


def test_a_wrong_row_costs_no_compute(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "run", pytest.fail)
    study.rows["broken"] = ("optimizer.nam=muon",)
    with pytest.raises(UserError, match="did you mean --config.optimizer.name"):
        run_study(study, tmp_path)


def test_study_files(tmp_path):
    assert "muon" in load_study(study_module.Path("configs/studies/quickstart.py")).rows
    path = tmp_path / "s.py"
    path.write_text("def get_study(): return 1 / 0")
    with pytest.raises(UserError, match=r"s\.py cannot be run: ZeroDivisionError"):
        load_study(path)
    path.write_text("def get_study(): return 1")
    with pytest.raises(UserError, match=r"must return a cramjax\.study\.Study"):
        load_study(path)

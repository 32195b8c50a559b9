"""The headline command, `python -m cramjax.main --config=FILE`, as people type it."""

import pytest

from cramjax import run
from cramjax.main import main


@pytest.mark.parametrize(
    ("flags", "workdir"),
    [
        (["--config=configs/a4000.py"], "runs/a4000"),
        (
            ["--config=configs/ablations/architecture.py:heads-4"],
            "runs/architecture-heads-4",
        ),
        (["--workdir=elsewhere", "--config", "configs/a4000.py"], "elsewhere"),
    ],
)
def test_the_workdir_is_named_after_the_config_and_printed_first(
    flags, workdir, monkeypatch, capsys
):
    monkeypatch.setattr(
        run, "run", lambda config, workdir, begun: print("ran", workdir)
    )
    assert main(flags) == 0
    assert capsys.readouterr().out == f"workdir: {workdir}\nran {workdir}\n"

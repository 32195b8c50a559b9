"""The progress line, with a clock that the tests move."""

import pytest

from cramjax import progress


@pytest.fixture
def now(monkeypatch):
    """The seconds since the job began, in a list of one."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    yield seconds
    progress.plan({})


def test_what_is_left_of_this_stage_and_what_comes_after_it(now, capsys):
    """The first call is the end of compilation; a tenth then takes 16 s."""
    progress.plan({"corpus": "", "pretraining": "24 hours", "fine-tuning": "8 tasks"})
    with progress.Stage("corpus") as stage:
        for _ in range(2):
            stage.update(0, "none yet")
    with progress.Stage("pretraining") as stage:
        for step in range(1, 5):
            now[0] += 16
            stage.update(step / 10, "loss 2")
    with progress.Stage("fine-tuning") as stage:
        for half in range(2):
            show = stage.part(start=half / 2, size=0.5)
            for done in (0.5, 1.0):
                now[0] += 900
                show(done, "CoLA")
    assert capsys.readouterr().out.splitlines() == [
        "corpus   0.0%  left -  none yet  then pretraining (24 hours)"
        "  then fine-tuning (8 tasks)",
        "pretraining  20.0%  left 0:02:08  loss 2  then fine-tuning (8 tasks)",
        "pretraining  40.0%  left 0:01:36  loss 2  then fine-tuning (8 tasks)",
        "fine-tuning  50.0%  left 0:30:00  CoLA",
        "fine-tuning  75.0%  left 0:15:00  CoLA",
        "fine-tuning 100.0%  left 0:00:00  CoLA",
    ]

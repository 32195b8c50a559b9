"""The command `cramjax` and the names of its commands."""

import re
import signal
import time

import pytest

from cramjax.glue import scores
from cramjax.main import command_names, guarded, main
from cramjax.run import lock_workdir


def test_the_help_fits_one_screen_and_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    listed = [found[1] for line in lines if (found := re.match(r"  (\w+)   ", line))]
    assert set(command_names()) <= set(listed)


@pytest.mark.parametrize("name", command_names())
def test_a_command_says_how_to_call_it(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"\n\ncramjax {name} --" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "hint"), [("evalute", "did you mean evaluate?"), ("qq", "pass describe, ")]
)
def test_a_mistyped_command_is_one_line(name, hint, capsys):
    assert main([name, "--config=quickstart"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name}: no such command; {hint}")
    assert error.count("\n") == 1


def test_a_report_is_written_anew(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scores, "DRAWS", 500)  # as when it was written
    report = finished[0] / "report.md"
    text = report.read_text()
    report.unlink()
    command = ["report", f"--workdir={finished[0]}"]
    with lock_workdir(finished[0]):
        assert main(command) == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert main(command) == 0
    assert report.read_text() == text
    assert main(["report", f"--workdir={tmp_path}"]) == 2
    assert "pass the workdir of a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_where_python_ignores_exceptions_is_not_lost(number, capsys):
    class Fragile:
        def __del__(self):
            signal.raise_signal(number)

    def command(argv):
        Fragile()
        time.sleep(30)

    assert guarded(command, [], "") == 128 + number
    assert capsys.readouterr().err == "interrupted: what was complete is kept\n"


def test_an_import_that_a_signal_breaks_is_an_interruption():
    def command(argv):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:  # as NumPy's compiled module does
            raise ImportError("numpy._core.multiarray failed to import") from error

    assert guarded(command, [], "") == 128 + signal.SIGTERM


def test_a_second_signal_ends_the_process_at_once(monkeypatch):
    def leave(code):
        raise SystemExit(code)

    def command(argv):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # as while it waits for a thread
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as left:
        guarded(command, [], "")
    assert left.value.code == 128 + signal.SIGTERM

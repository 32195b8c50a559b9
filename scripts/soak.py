"""Trains for a long time with stops, and prints whether memory, files or time drift.

    python scripts/soak.py --workdir=runs/soak [--minutes=90] [--stop_minutes=20]
        [--config=quickstart] [--config.KEY=VALUE ...]

It trains under a budget of wall-clock time with validation, checkpoints and TensorBoard
(the extra `tensorboard`), sends SIGTERM now and then, and starts the same command
again. After an interruption, the same call goes on. For each session it prints how much
memory and how many open files the process gained per hour, and how often the step was
compiled; at the end, how far the run's clock is from the time of day. Linux only.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cramjax.config.key import above
from cramjax.flags import number, parse_flags
from cramjax.main import guarded

SAMPLE_S = 10.0
SETTLED_S = 120.0  # of a session are left out: compiling and the first validation
OVERRIDES = (
    "glue.tasks=()",
    "budget.tokens=0",
    "validation.every_minutes=1",
    "checkpoint.every_minutes=1",
    "log.trackers=('tensorboard',)",
)


def sample(pid: int) -> tuple[float, int]:
    """Returns a process's memory in MB (of its own, without files) and open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    kb = int(re.search(r"RssAnon:\s+(\d+)", status)[1])
    return kb / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def session(command: list[str], stop_s: float, number: int) -> bool:
    """Runs a command until it ends or `stop_s` are over; returns whether it ended."""
    environment = os.environ | {"JAX_LOG_COMPILES": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        started, rows = time.monotonic(), []
        while process.poll() is None:
            seconds = time.monotonic() - started
            if seconds > stop_s:
                process.send_signal(signal.SIGTERM)
                stop_s = np.inf
            with contextlib.suppress(OSError, TypeError):  # it has just ended
                rows.append((seconds, *sample(process.pid)))
            time.sleep(SAMPLE_S)
        log.seek(0)
        printed = log.read().decode()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{printed}")
    table = np.array([row for row in rows if row[0] > SETTLED_S])
    if len(table) > 2:
        hours = table[:, 0] / 3600
        mb, files = (np.polyfit(hours, table[:, i], 1)[0] for i in (1, 2))
        compiled = printed.count("Finished XLA compilation of jit(micro_step)")
        print(
            f"session {number}: {rows[-1][0] / 60:.1f} minutes, memory "
            f"{table[0, 1]:.0f} to {table[-1, 1]:.0f} MB ({mb:+.1f} MB per hour), open "
            f"files {table[0, 2]:.0f} to {table[-1, 2]:.0f} ({files:+.2f} per hour), "
            f"the step was compiled {compiled} times",
            flush=True,
        )
    return process.returncode == 0


def clock_error(workdir: Path) -> str:
    """Returns a line: all the run's seconds by its clock, and by the time of day."""
    first = json.loads((workdir / "metrics.jsonl").open().readline())
    summary = workdir / "pretrain.json"
    by_day = summary.stat().st_mtime - (first["time"] - first["elapsed_s"])
    by_clock = sum(json.loads(summary.read_text())["seconds"].values())
    return (
        f"clock: {by_clock:.1f} s, time of day: {by_day:.1f} s "
        f"({by_clock / by_day - 1:+.3%})"
    )


def soak(argv: Sequence[str]) -> None:
    """Runs sessions until the budget is spent."""
    optional = ["minutes", "stop_minutes", "config"]
    given, rest = parse_flags(argv, {"workdir": "FOLDER"}, optional)
    minutes = number(given, "minutes", 90, above(0))
    stop_s = 60 * number(given, "stop_minutes", 20, above(0))
    overrides = (*OVERRIDES, f"budget.hours={minutes / 60}")
    command = [
        *(sys.executable, "-m", "cramjax.main", f"--workdir={given['workdir']}"),
        f"--config={given['config'] or 'quickstart'}",
        *(f"--config.{override}" for override in overrides),
        *rest,
    ]
    for count in itertools.count(1):
        if session(command, stop_s, count):
            break
    print(clock_error(Path(given["workdir"])))


if __name__ == "__main__":
    sys.exit(guarded(soak, sys.argv[1:], __doc__))

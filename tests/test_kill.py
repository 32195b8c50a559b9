"""kill -9 at random moments: the same command finishes with the same numbers."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import TINY

OVERRIDES = (
    *TINY,
    "averaging.ema_decay=0.0",
    "averaging.lawa_last=0",
    "checkpoint.every_minutes=0.008",
    "validation.every_minutes=0.05",
    "log.every_steps=500",
    "glue.tasks=()",
)


@pytest.fixture(scope="module", params=[3, pytest.param(20, marks=pytest.mark.slow)])
def kills(request):
    return request.param


def launch(workdir, data_dir, tokens, **environment):
    """Starts a run; its output is in a pipe."""
    overrides = (*OVERRIDES, f"data.dir={data_dir}", f"budget.tokens={tokens}")
    # A process started under `nohup` ignores SIGHUP, and so would its children.
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "cramjax.main"),
                "--config=configs/small.py",
                *(f"--config.{override}" for override in overrides),
                f"--workdir={workdir}",
            ],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, inherited)


@pytest.fixture(scope="module")
def command(kills, data_dir, tmp_path_factory):
    """Starts a run in a workdir; programs are compiled once for all."""
    # 200 micro-steps a life are more than all the lives together have time for.
    tokens = kills * 200 * 128
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return lambda workdir: launch(workdir, data_dir, tokens, **cache)


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    process = command(workdir)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return json.loads((workdir / "pretrain.json").read_text())


def steps_saved(workdir):
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def test_killed_runs_finish_with_the_same_numbers(
    command, uninterrupted, tmp_path, kills
):
    """The first life ends at its first checkpoint, the others around that time."""
    begin = time.monotonic()
    process = command(tmp_path)
    while not steps_saved(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    start_up_s = time.monotonic() - begin
    process.kill()
    process.communicate()
    reached = [steps_saved(tmp_path)]
    generator = random.Random(kills)
    shares = np.linspace(0.3, 1.5, kills - 1) + generator.uniform(-0.1, 0.1)
    generator.shuffle(shares)
    for share in shares:
        process = command(tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):  # it was not finished yet
            process.communicate(timeout=share * start_up_s)
        process.kill()
        process.communicate()
        reached.append(steps_saved(tmp_path))
    assert reached == sorted(reached) and reached[-1] > 0
    process = command(tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    summary = json.loads((tmp_path / "pretrain.json").read_text())
    for key in ("held_out_loss", "train_loss", "tokens", "micro_steps", "updates"):
        assert summary[key] == uninterrupted[key], key
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "event" not in line]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_whose_reader_is_gone_is_saved(data_dir, tmp_path, number):
    """Ctrl-C interrupts `tee`, too; a dropped connection takes the terminal away."""
    process = launch(tmp_path, data_dir, tokens=10**9)
    while not steps_saved(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    process.stdout.close()
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    stopped = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (stopped["event"], stopped["step"]) == ("stopped", steps_saved(tmp_path))

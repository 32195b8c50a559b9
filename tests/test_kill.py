"""kill -9 at random moments: the same command finishes with the same numbers."""

import json
import os
import random
import subprocess
import sys

import pytest
from conftest import TINY

OVERRIDES = (
    *TINY,
    "budget.tokens=1024000",  # 8,000 micro-steps: longer than all the lives together
    "checkpoint.every_minutes=0.004",
    "validation.every_minutes=0.01",
    "log.every_steps=500",
    "glue.tasks=()",
)


@pytest.fixture(scope="module")
def command(data_dir, tmp_path_factory):
    """The command line without its workdir; programs are compiled once for all."""
    program = [sys.executable, "-m", "cramjax.main", "--config=configs/quickstart.py"]
    program += [f"--config.{o}" for o in (*OVERRIDES, f"data.dir={data_dir}")]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }

    def start(workdir):
        return subprocess.Popen(
            [*program, f"--workdir={workdir}"],
            env=os.environ | cache,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    process = command(workdir)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return json.loads((workdir / "pretrain.json").read_text())


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_finish_with_the_same_numbers(
    command, uninterrupted, tmp_path, kills
):
    generator = random.Random(kills)
    reached = []
    for _ in range(kills):
        process = command(tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):  # it was not finished yet
            process.communicate(timeout=generator.uniform(1.0, 4.5))
        process.kill()
        process.communicate()
        steps = [
            int(p.name) for p in tmp_path.glob("checkpoints/*") if p.name.isdigit()
        ]
        reached.append(max(steps, default=0))
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

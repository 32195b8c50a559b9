"""The adapter to datatrove: with a stand-in, and with datatrove and a fake sbatch."""

import dataclasses
import os
import stat
import sys
import types
from pathlib import Path

import pytest
from test_dedup import config_of
from test_prepare import content, cores

from cramjax.data import cluster, prepare
from cramjax.errors import SourceLost, UserError

SLURM = {"partition": "cpu", "time": "01:00:00"}
# Runs the job at once; it has no queue, and waits for nothing.
SBATCH = """
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
count = int(re.search(r"--array=0-(\\d+)", text)[1]) + 1
if "merge_stats" not in text:
    with open(os.environ["SUBMITTED"], "a") as log:
        print(count, *(a for a in sys.argv if "dependency" in a), file=log)
    for task in range(count):
        env = os.environ | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here"}
        subprocess.run(["bash", script], env=env, check=True, stdout=sys.stderr)
print("Submitted batch job 7")
"""


class StandIn:
    """What datatrove's executors do, in this process; task 1 of `fails` fails."""

    fails = ""
    worker_folder = ""
    ran: list[tuple[str, int]] = []  # noqa: RUF012

    def __init__(self, pipeline, tasks, *, logging_dir, depends, **options):
        self.step, self.tasks, self.depends = pipeline[0], tasks, depends
        self.stage, self.failed = Path(logging_dir).name, []

    def run(self):
        if self.depends and (self.depends.stage, self.depends.tasks) not in self.ran:
            self.depends.run()
        self.ran.append((self.stage, self.tasks))
        for rank in range(self.tasks):
            if (self.stage, rank) == (self.fails, 1):
                self.failed.append(rank)
            else:
                os.chdir(self.worker_folder)
                self.step(None, rank, self.tasks)

    def get_incomplete_ranks(self):
        return self.failed


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    (tmp_path / "worker").mkdir()
    monkeypatch.setattr(StandIn, "worker_folder", tmp_path / "worker")
    names = ("datatrove", "datatrove.executor", "datatrove.executor.ray", "ray")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["ray"].init = lambda **_: None
    sys.modules["datatrove.executor"].SlurmPipelineExecutor = StandIn
    sys.modules["datatrove.executor.ray"].RayPipelineExecutor = StandIn
    monkeypatch.setattr(StandIn, "ran", [])
    cores(monkeypatch, 1)
    return StandIn


@pytest.mark.parametrize("executor", ["ray", "slurm"])
def test_an_executor_runs_every_stage_after_the_one_before(
    executor, stand_in, tmp_path, monkeypatch
):
    config = config_of(tmp_path)
    whole = content(prepare.prepare(config).path)
    monkeypatch.chdir(tmp_path)
    data = dataclasses.replace(config.data, dir="cluster")
    config = dataclasses.replace(config, data=data)
    if executor == "ray":
        monkeypatch.setattr(stand_in, "fails", "blocks")
        with pytest.raises(
            SourceLost, match=r"1 of 3 tasks of stage blocks .*task_00001"
        ):
            cluster.submit(config, executor, 3, {})
        monkeypatch.setattr(stand_in, "fails", "")
        stand_in.ran.clear()
    cluster.submit(config, executor, 3, SLURM)
    stages = [("sources", 1), ("tokenizer", 1), ("blocks", 3), ("manifest", 1)]
    assert stand_in.ran == stages
    monkeypatch.chdir(tmp_path)
    assert content(prepare.corpus_path(config)) == whole


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    with pytest.raises(UserError, match="--executor=dask: must be ray or slurm"):
        cluster.submit(config, "dask", 3, SLURM)
    with pytest.raises(UserError, match="no time: pass --time=24:00:00"):
        cluster.submit(config, "slurm", 3, SLURM | {"time": ""})
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[cluster\]"'):
        cluster.submit(config, "slurm", 3, SLURM)


def test_datatrove_submits_to_slurm(tmp_path, monkeypatch):
    pytest.importorskip("datatrove", reason='needs pip install -e ".[cluster]"')
    programs = {
        "sbatch": f"#!{sys.executable}{SBATCH}",
        "srun": '#!/bin/bash\nshift 3\nexec "$@"\n',  # -l -n 1
        "scontrol": "#!/bin/bash\necho here\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    places = (tmp_path, Path(sys.executable).parent, os.environ["PATH"])
    monkeypatch.setenv("PATH", ":".join(map(str, places)))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "submitted"))
    config = config_of(tmp_path)
    cluster.submit(config, "slurm", 3, SLURM)
    built = content(prepare.corpus_path(config))
    jobs = (tmp_path / "submitted").read_text().splitlines()
    after = "--dependency=afterok:7"
    assert jobs == ["1", f"1 {after}", f"3 {after}", f"1 {after}"]
    assert content(prepare.prepare(config_of(tmp_path, name="pool")).path) == built

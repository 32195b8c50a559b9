"""A build on Slurm or Ray, through datatrove's executors (the extra "cluster").

They call `prepare.prepare_as_task` for one stage at a time. datatrove notes which tasks
have ended by their numbers alone, so the notes are in a folder whose name is a hash of
everything that decides what a task does.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cramjax.config import Config
from cramjax.data import corpus, sources
from cramjax.data.prepare import STAGES, prepare_as_task
from cramjax.errors import SourceLost, UserError

logger = logging.getLogger(__name__)

FOLDER = "executors"  # in data.dir: the executors' logs
SINGLE = ("sources", "cuts", "tokenizer", "manifest")  # stages of one unit
MEMORY_GB = 4  # of a task, with one core


def submit(
    config: Config, executor: str, tasks: int, options: Mapping[str, str]
) -> None:
    """Builds a corpus on Ray and waits for it, or submits the jobs for it to Slurm.

    Args:
      config: of the corpus.
      executor: "ray" or "slurm".
      tasks: of a stage.
      options: "partition" and "time" for Slurm.

    Raises:
      UserError: the executor is unknown or not installed, an option is missing, or the
        sources cannot be read.
      SourceLost: a task has failed; the same call continues.
    """
    make = _executor(executor, options)
    folder = _notes(config, tasks)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--executor={executor}: another process is building this corpus"
        ) from error
    with lock:
        last = None
        for stage in STAGES:
            step = functools.partial(_step, config, stage, os.getcwd())
            count = 1 if stage in SINGLE else tasks
            last = make([step], count, logging_dir=str(folder / stage), depends=last)
            if executor == "ray":
                last.run()
                if failed := last.get_incomplete_ranks():
                    raise SourceLost(
                        f"--executor=ray: stage {stage}: {len(failed)} of {count} "
                        f"tasks have failed, see {folder / stage}/logs/task_"
                        f"{failed[0]:05d}.log; the same command continues"
                    )
        if executor == "slurm":
            last.run()  # submits those it depends on, too
            logger.info(f"corpus: submitted to Slurm; logs are in {folder}")


def _step(
    config: Config,
    stage: str,
    folder: str,
    data: Any = None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Does what datatrove asks of a task; the paths of the config may be relative."""
    del data
    os.chdir(folder)
    prepare_as_task(config, rank, world_size, stage)


def _notes(config: Config, tasks: int) -> Path:
    """Returns the folder of the notes on the same text, settings and tasks."""
    found = [
        [f.name, f.size, f.digest or Path(f.path).stat().st_mtime_ns]
        for f in sources.resolve(config.data)
    ]
    limits = [config.data.max_chars, config.data.max_documents, *config.data.shares]
    key = json.dumps([corpus.settings(config), found, limits, tasks])
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    return Path(config.data.dir).expanduser() / FOLDER / name


def _executor(executor: str, options: Mapping[str, str]) -> Any:
    """Returns what makes an executor of datatrove from its steps and tasks."""
    try:
        if executor == "ray":
            import ray
            from datatrove.executor.ray import RayPipelineExecutor

            ray.init(ignore_reinit_error=True, include_dashboard=False)
            return functools.partial(RayPipelineExecutor, mem_per_cpu_gb=MEMORY_GB)
        from datatrove.executor import SlurmPipelineExecutor
    except ImportError as error:
        raise UserError(
            f'--executor={executor} needs the extra "cluster" ({error}): pip install '
            '-e ".[cluster]"'
        ) from error
    for name, example in {"partition": "cpu", "time": "24:00:00"}.items():
        if not options[name]:
            raise UserError(f"--executor=slurm: pass --{name}={example}")
    return functools.partial(
        SlurmPipelineExecutor,
        partition=options["partition"],
        time=options["time"],
        mem_per_cpu_gb=MEMORY_GB,
        job_name="cramjax",
        qos="",
    )

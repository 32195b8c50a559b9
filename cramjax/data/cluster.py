"""A build on Slurm or Ray, through datatrove's executors (the extra "cluster").

They call `prepare_as_task` for one stage at a time. datatrove notes which tasks have
ended by their numbers alone, so every call of `submit` has notes of its own; what is
finished is seen from the corpus's files, and the number of tasks may change.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cramjax.config import Config
from cramjax.data import dedup
from cramjax.data.prepare import STAGES, prepare_as_task
from cramjax.errors import SourceLost, UserError

logger = logging.getLogger(__name__)

SINGLE = ("sources", "cuts", "tokenizer", "manifest")  # stages of one unit
MEMORY_GB = 4  # of a task, which has one core


def submit(
    config: Config, executor: str, tasks: int, options: Mapping[str, str]
) -> None:
    """Builds a corpus on Ray and waits for it, or submits the jobs for it to Slurm.

    Each stage has `tasks`; the options are "partition" and "time" of Slurm's jobs.

    Raises:
      UserError: the executor is unknown or not installed, or an option is missing.
      SourceLost: a task has failed; the same call continues.
    """
    make = _maker(executor, options)
    name = time.strftime("executor-%Y%m%d-%H%M%S")
    folder = Path(config.data.dir).expanduser().absolute() / name
    last = None
    for stage in STAGES:
        if stage in dedup.STAGES and not dedup.is_on(config.data):
            continue
        step = functools.partial(_step, config, stage, os.getcwd())
        count = 1 if stage in SINGLE else tasks
        last = make([step], count, logging_dir=str(folder / stage), depends=last)
        if executor == "ray":
            last.run()
            if failed := last.get_incomplete_ranks():
                log = folder / stage / f"logs/task_{failed[0]:05d}.log"
                raise SourceLost(
                    f"--executor=ray: {len(failed)} of {count} tasks of stage {stage} "
                    f"have failed, see {log}; the same command continues"
                )
    if executor == "slurm":
        last.run()  # after those it depends on
        logger.info(f"corpus: the jobs are submitted, their logs are in {folder}")


def _step(
    config: Config, stage: str, folder: str, data: Any, rank: int, world_size: int
) -> None:
    """Is what datatrove calls; the paths of the config are relative to the folder."""
    os.chdir(folder)
    prepare_as_task(config, rank, world_size, stage)


def _maker(executor: str, options: Mapping[str, str]) -> Callable[..., Any]:
    """Returns what makes an executor of datatrove from its steps and tasks."""
    if executor not in ("ray", "slurm"):
        raise UserError(f"--executor={executor}: must be ray or slurm")
    for name, example in {"partition": "cpu", "time": "24:00:00"}.items():
        if executor == "slurm" and not options[name]:
            raise UserError(f"--executor=slurm: no {name}: pass --{name}={example}")
    try:
        if executor == "slurm":
            from datatrove.executor import SlurmPipelineExecutor

            given = {name: options[name] for name in ("partition", "time")}
            kinds = {"job_name": "cramjax", "qos": "", "mem_per_cpu_gb": MEMORY_GB}
            return functools.partial(SlurmPipelineExecutor, **given, **kinds)
        import ray
        from datatrove.executor.ray import RayPipelineExecutor
    except ImportError as error:
        raise UserError(
            f"--executor={executor} needs datatrove and ray ({error}): pip install -e "
            '".[cluster]"'
        ) from error
    ray.init(include_dashboard=False)
    return functools.partial(RayPipelineExecutor, mem_per_cpu_gb=MEMORY_GB)

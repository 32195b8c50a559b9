"""A build in stages: on this machine, or by several tasks that share a folder."""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cramjax.data import processes
from cramjax.errors import UserError

logger = logging.getLogger(__name__)

POLL_S = 2.0  # between looks at what other tasks have finished


class Unit(NamedTuple):
    """A piece of a stage. Called again, its function does what is not finished yet.

    Attributes:
      done: returns whether it is finished, from what is on the disk.
      function: writes its files; equal ones, whoever calls it.
      arguments: can be pickled.
    """

    done: Callable[[], bool]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Stage(NamedTuple):
    """Units that need all stages before; the next stage is asked for after them.

    Attributes:
      name: on the command line, and in messages.
      units: in any order.
      serial: on one machine they run one after the other, for their memory.
    """

    name: str
    units: Sequence[Unit]
    serial: bool = False


def exists(*paths: Path) -> Callable[[], bool]:
    """Returns a `Unit.done`: whether one of these files exists."""
    return functools.partial(_any_exists, paths)


def _any_exists(paths: Sequence[Path]) -> bool:
    return any(path.exists() for path in paths)


def run(stages: Iterable[Stage]) -> None:
    """Runs all stages on the cores of this machine."""
    for name, units, serial in stages:
        if units:
            calls = [unit.arguments for unit in units]
            cores = 1 if serial else processes.cores()
            processes.run(units[0].function, calls, name, cores)


def run_task(stages: Iterable[Stage], task: int, tasks: int, only: str = "") -> None:
    """Runs every unit of a stage whose position is `task` modulo `tasks`.

    Args:
      stages: the same ones in every task.
      task: from 0 on.
      tasks: how many there are, at the same time: they wait for each other.
      only: the one stage to run, without waiting; "" for all.

    Raises:
      UserError: a stage before `only` is not finished.
    """
    for name, units, _ in stages:
        if not only or name == only:
            for unit in units[task::tasks]:
                unit.function(*unit.arguments)
            logger.info(f"{name}: task {task} of {tasks} is done")
        if name == only:
            return
        for number, unit in enumerate(units):
            waited = False
            while not unit.done():
                if only:
                    raise UserError(
                        f"--stage={only}: stage {name} is not finished: run its task "
                        f"{number % tasks} again, with --stage={name}"
                    )
                if not waited:
                    logger.info(f"{name}: waiting for task {number % tasks}")
                waited = True
                time.sleep(POLL_S)

"""A build in stages: on this machine, or by several tasks that share a folder."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from cramjax.errors import SourceLost, UserError

logger = logging.getLogger(__name__)

POLL_S = 2.0  # between looks at what other tasks have finished


class Unit(NamedTuple):
    """A piece of a stage. Called again, its function does what is not finished yet.

    Attributes:
      done: returns whether it is finished, from what is on the disk.
      function: writes its files, equal ones whoever calls it.
      arguments: can be pickled, as the function can.
    """

    done: Callable[[], bool]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


# A stage's name, and its units: of the same function, and after all stages before.
Stage = tuple[str, Sequence[Unit]]


def exists(*paths: Path) -> Callable[[], bool]:
    """Returns a `Unit.done`: whether one of these files of a folder exists.

    When all stages are finished, the folder gets another name.
    """
    folder = paths[0].parent
    return lambda: any(path.exists() for path in paths) or not folder.exists()


def remove(folder: Path, patterns: Iterable[str]) -> None:
    """Deletes the files that match; another task may do so, too."""
    for path in itertools.chain.from_iterable(map(folder.glob, patterns)):
        path.unlink(missing_ok=True)


def run(stages: Iterable[Stage]) -> None:
    """Runs all stages on the cores of this machine.

    With one unit or one core everything runs in this process.
    """
    for name, units in stages:
        workers = min(cores(), len(units))
        if workers == 1:
            for unit in units:
                unit.function(*unit.arguments)
            continue
        with worker_pool(workers, cores() // workers) as pool:
            futures = [pool.submit(unit.function, *unit.arguments) for unit in units]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                logger.info(f"{name}: {done} of {len(units)} parts")


def run_task(stages: Iterable[Stage], task: int, tasks: int, only: str) -> None:
    """Runs every unit whose position in its stage is `task` modulo `tasks`.

    Args:
      stages: the same ones in every task.
      task: from 0 on.
      tasks: how many there are. They wait for each other: all must run at once.
      only: the one stage to run, without waiting; those before it must be finished. ""
        for all.

    Raises:
      UserError: a stage before `only` is not finished.
    """
    for name, units in stages:
        if only in ("", name):
            for unit in units[task::tasks]:
                unit.function(*unit.arguments)
            logger.info(f"{name}: task {task} of {tasks} is done")
        if name == only:
            return
        waiting_for = None
        for number, unit in enumerate(units):
            while not unit.done():
                other = number % tasks
                if only:
                    raise UserError(
                        f"--stage={only}: stage {name} is not finished: first run its "
                        f"task {other} (of {tasks}) again, with --stage={name}"
                    )
                if waiting_for != other:
                    logger.info(f"{name}: waiting for task {other} of {tasks}")
                waiting_for = other
                time.sleep(POLL_S)


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def worker_pool(count: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Yields processes that end with the block or with this process, if it is killed.

    In each, the tokenizers library uses so many `threads`. Raises `SourceLost` if one
    of them is killed.
    """
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(threads,),
    )
    try:
        yield executor
    except BrokenProcessPool as error:
        raise SourceLost(
            "a process that reads text was killed (too little memory?): the same "
            "command keeps what is finished and goes on; in your own program, call "
            'this under `if __name__ == "__main__":`'
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


def _start(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

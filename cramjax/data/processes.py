"""Worker processes that leave nothing behind."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

from cramjax.errors import SourceLost


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def pool(count: int, threads: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Yields processes that end with the block or with this process, if it is killed.

    The tokenizers library has so many threads in each. Raises `SourceLost` if one of
    them is killed.
    """
    others = set(multiprocessing.active_children())
    executor = concurrent.futures.ProcessPoolExecutor(
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
            "command continues with what is finished; in a program of yours, call this "
            'under `if __name__ == "__main__":`'
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

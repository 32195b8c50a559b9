"""Training in several processes, one for each GPU, by JAX's distributed runtime."""

import contextlib
import os
import re
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cramjax.errors import UserError

SLURM = "slurm"  # instead of an address
SILENT_S = 20  # a process that has been silent for longer ends all others
BARRIER_MS = 2_000_000_000  # 23 days: the others wait while process 0 builds a corpus
# In messages of collectives that failed because a process is gone.
LOST = re.compile("gloo|nccl|coordination|connection|peer", re.IGNORECASE)


def join(coordinator: str, processes: str, process: str) -> None:
    """Joins the processes of a run, if the flags of these names are given.

    Process 0 listens at the coordinator's address, HOST:PORT. "slurm" stands for all
    three: the values are those of the Slurm step, with a GPU for each of its tasks.
    Processes other than 0 print only errors.

    Raises:
      UserError: the flags are wrong, or the others cannot be reached.
    """
    if not (coordinator or processes or process):
        return
    if coordinator == SLURM and "SLURM_LOCALID" not in os.environ:
        raise UserError(f"--coordinator={SLURM}: no Slurm step: start it with srun")
    arguments: dict[str, Any] = {"cluster_detection_method": SLURM}
    if coordinator != SLURM:
        numbers = processes.isdigit() and process.isdigit()
        if not (":" in coordinator and numbers and int(process) < int(processes)):
            raise UserError(
                f"--coordinator={coordinator} --processes={processes} "
                f"--process={process}: pass HOST:PORT of process 0, the number of "
                f"processes, and which one this is, from 0; or --coordinator={SLURM}"
            )
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": int(processes),
            "process_id": int(process),
            "cluster_detection_method": "deactivate",
        }
    # It would replace the handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=SILENT_S,
            shutdown_timeout_seconds=SILENT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--coordinator={coordinator}: no connection ({error}): check the address, "
            "and that all processes are started"
        ) from error
    if not is_first():
        # `main.guarded` restores it.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def is_first() -> bool:
    """Returns whether this is process 0, which writes logs, records and reports."""
    return jax.process_index() == 0


def devices() -> int:
    """Returns how many devices train together."""
    return jax.device_count() if jax.process_count() > 1 else 1


def from_first(values: list[int]) -> list[int]:
    """Returns process 0's values."""
    return multihost_utils.broadcast_one_to_all(np.int32(values)).tolist()


def check_equal(config: str) -> None:
    """Raises a `UserError`, in all processes, unless all have the same config."""
    digest = np.int32(zlib.crc32(config.encode()) >> 1)
    if jax.process_count() > 1 and np.ptp(multihost_utils.process_allgather(digest)):
        raise UserError(
            "--process: not all processes have the same config: start all with the "
            "same command"
        )


def wait_for_all(name: str) -> None:
    """Returns when all processes have called it, however long that takes."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=BARRIER_MS)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Lets process 0 run the block, and then the others."""
    if not is_first():
        wait_for_all(name)
    yield
    if is_first():
        wait_for_all(name)


@contextlib.contextmanager
def peers_watched() -> Iterator[None]:
    """Ends this process at once if the block fails because another one is gone.

    What follows the block would wait for the other.
    """
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if jax.process_count() == 1 or not LOST.search(str(error)):
            raise
        gone = "another process is gone; the same command goes on from a checkpoint"
        print(f"error: {gone}", file=sys.stderr, flush=True)
        os._exit(1)

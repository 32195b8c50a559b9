"""Checkpoints with Orbax: the device's state together with the host's.

A full disk must neither end a run nor cost its last checkpoint: see `save` and
`save_at_last`.
"""

import contextlib
import logging
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax import files
from cramjax.config import CheckpointConfig
from cramjax.errors import DiskFault, UserError, disk_fault, one_line
from cramjax.training.clock import Clock

logger = logging.getLogger(__name__)

WAIT_S = 1.0  # between two attempts to write to a full disk
LEAVES = "leaves"  # in the host's state: the checksums of the device's
# Leaves of the state that earlier versions stored under another name.
EARLIER_NAMES = {
    ("params", "embedding", "positions", "scale"): (
        "params",
        "embedding",
        "position_scale",
    )
}


class CheckpointStore:
    """Numbered checkpoints in a folder; a context manager that waits for its writes.

    A checkpoint gets its final name when it is complete, so that a killed process
    leaves the one before it as the latest.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        """Opens or creates the folder."""
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep, cleanup_tmp_directories=True
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
        self._manager.close()

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Copies the state off the device and writes it in the background.

        If the disk is full or fails, this checkpoint is left out: the next one may be
        written.
        """
        try:
            self._save(step, state, host)
        except DiskFault as error:
            logger.warning(f"{error}; training goes on, check the disk")

    def save_at_last(
        self,
        state: Any,
        host: Callable[[], dict[str, Any]],
        clock: Clock,
        signals: list[int],
    ) -> None:
        """Returns when the state is on disk; tries until it can be written.

        Args:
          state: of the device.
          host: returns the host's state, which includes the clock's.
          clock: the run's; the time spent waiting is not charged.
          signals: received so far; another SIGINT or SIGTERM ends the wait.

        Raises:
          UserError: the wait was ended; the state is lost.
        """
        before, announced = len(signals), False
        while True:
            try:
                with clock.measure("checkpoints"):
                    self._save(clock.step, state, host())
                    with self._faults_explained():
                        self._manager.wait_until_finished()
                return
            except DiskFault as error:
                if not announced:
                    logger.warning(f"{error}; trying again until you press Ctrl-C")
                announced = True
                if set(signals[before:]) & {signal.SIGINT, signal.SIGTERM}:
                    raise UserError(
                        f"{error}: the state was not saved. Check the disk; the same "
                        f"command goes on from step {self.latest_step() or 0}, and "
                        "what was lost is charged"
                    ) from error
            with clock.measure("idle"):
                time.sleep(WAIT_S)

    def wait(self) -> None:
        """Returns when what was saved is on disk, or could not be written."""
        try:
            with self._faults_explained():
                self._manager.wait_until_finished()
        except DiskFault as error:
            logger.warning(f"{error}; check the disk")

    def _save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Saves unless the step exists, which is the same state.

        Raises:
          DiskFault: there is no room for it, or the one before was not written.
        """
        if step == self.latest_step():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise DiskFault(
                f"{self._folder} has no room for a checkpoint: it takes "
                f"{needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
            )
        host = {**host, LEAVES: checksums(state)}
        host |= {files.CHECKSUM: files.checksum(host)}
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
        )
        with self._faults_explained():
            self._manager.save(step, args=arguments, force=True)

    @contextlib.contextmanager
    def _faults_explained(self) -> Iterator[None]:
        """Turns a disk's errors, which Orbax may report later, into `DiskFault`."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not (fault := disk_fault(error)):
                raise
            with contextlib.suppress(OSError, ValueError):
                self._manager.wait_until_finished()
            for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)  # it takes up room
            self._manager.reload()  # it has forgotten what this one was to replace
            raise DiskFault(
                f"{self._folder}: a checkpoint was not written ({fault})"
            ) from error

    def latest_step(self) -> int | None:
        """Returns the number of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the numbers of all complete checkpoints, the newest one last."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the device's and the host's state of a checkpoint.

        The arrays get the shardings of `like`, a tree of `jax.ShapeDtypeStruct`: the
        checkpoint may have been written on another kind of device.

        Raises:
          UserError: it is damaged.
        """
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), host=ocp.args.JsonRestore()
        )
        with self._damage_explained(step):
            found = self._manager.restore(step, args=arguments)
            _compare(found["state"], found["host"])
            return found["state"], found["host"]

    def parts(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Returns parts of the device's state, also of an earlier version's checkpoint.

        See `restore`; `like` is nested dicts of the wanted leaves.

        Raises:
          UserError: it is damaged.
        """
        folder = (self._folder / str(step) / "state").absolute()
        handler = ocp.PyTreeCheckpointHandler()
        with self._damage_explained(step), contextlib.closing(handler):
            stored = flatten_dict(handler.metadata(folder).tree)
            wanted = flatten_dict(like)
            names = {n: n if n in stored else EARLIER_NAMES[n] for n in wanted}
            like = unflatten_dict({names[n]: leaf for n, leaf in wanted.items()})
            arguments = ocp.args.PyTreeRestore(
                like,
                restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                partial_restore=True,
            )
            found = handler.restore(folder, args=arguments)
            host = ocp.args.Composite(host=ocp.args.JsonRestore())
            _compare(found, self._manager.restore(step, args=host)["host"])
            found = flatten_dict(found)
            return unflatten_dict({n: found[names[n]] for n in wanted})

    @contextlib.contextmanager
    def _damage_explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds: Orbax, TensorStore, JSON, the disk
            raise UserError(
                f"{self._folder / str(step)} cannot be read ({one_line(error)}): "
                "delete it, and the run goes on with the checkpoint before it"
            ) from error


def _compare(state: Any, host: dict[str, Any]) -> None:
    """Takes the checksums out of the host's state; raises an error if one differs.

    TensorStore does not notice a changed bit. `state` may be a part of the whole.
    """
    damaged = host.pop(files.CHECKSUM, expected := files.checksum(host)) != expected
    saved = host.pop(LEAVES, None)  # of which earlier versions had none
    if damaged or (saved and not checksums(state).items() <= saved.items()):
        raise ValueError("a checksum differs")


def checksums(tree: Any) -> dict[str, int]:
    """Returns the checksum of every array by its path: 1 GB takes half a second."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(
            np.asarray(array).ravel().view(np.uint8)
        )
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }

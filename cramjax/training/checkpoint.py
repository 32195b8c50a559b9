"""Checkpoints with Orbax: the device's state, and the host's beside it.

A full disk must neither end a run nor cost its last checkpoint: see `save` and
`save_at_last`.
"""

import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.config import CheckpointConfig
from cramjax.errors import DiskFull, UserError, is_disk_full, one_line
from cramjax.training.clock import Clock

logger = logging.getLogger(__name__)

WAIT_S = 1.0  # between two looks at a full disk
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

    A checkpoint is written beside its final name and renamed when whole, so a killed
    process leaves the one before it as the latest.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        """Opens or makes the folder."""
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
        self._manager.close()

    def warn_if_full(self, state: Any) -> None:
        """Warns if the disk has no room for a checkpoint now."""
        try:
            self._check_room(state)
        except DiskFull as error:
            logger.warning(f"{error}; going on, make room")

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Copies the state off the device and writes it in the background.

        On a full disk there is no checkpoint this time: there may be room later.
        """
        try:
            self._save(step, state, host)
        except DiskFull as error:
            logger.warning(f"{error}; going on, make room")

    def save_at_last(
        self,
        state: Any,
        host: Callable[[], dict[str, Any]],
        clock: Clock,
        signals: list[int],
    ) -> None:
        """Returns when the state is on disk, and waits for room: it has cost much.

        Args:
          state: of the device.
          host: returns what is kept beside it.
          clock: of the run; the time spent waiting is not charged.
          signals: that have arrived; another SIGINT or SIGTERM gives the state up.

        Raises:
          UserError: it was given up.
        """
        before, announced = len(signals), False
        while True:
            try:
                with clock.measure("checkpoints"):
                    self._save(clock.step, state, host())
                    with self._room_explained():
                        self._manager.wait_until_finished()
                return
            except DiskFull as error:
                if not announced:
                    logger.warning(f"{error}; waiting for room, Ctrl-C gives up")
                announced = True
                if set(signals[before:]) & {signal.SIGINT, signal.SIGTERM}:
                    step = self.latest_step() or 0
                    raise UserError(
                        f"{error}: the state was given up; make room, and the same "
                        f"command goes on from step {step}, what was lost is charged"
                    ) from error
            with clock.measure("idle"):
                time.sleep(WAIT_S)

    def wait(self) -> None:
        """Returns when all that was saved is on disk, or did not fit there."""
        with contextlib.suppress(DiskFull), self._room_explained():
            self._manager.wait_until_finished()

    def _check_room(self, state: Any) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise DiskFull(
                f"{self._folder} has no room for a checkpoint: it takes "
                f"{needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
            )

    def _save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Saves unless the step exists, which is the same state.

        Raises:
          DiskFull: there is no room for it, or was none for the one before.
        """
        if step == self._manager.latest_step():
            return
        self._check_room(state)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
        )
        with self._room_explained():
            self._manager.save(step, args=arguments, force=True)

    @contextlib.contextmanager
    def _room_explained(self) -> Iterator[None]:
        """Orbax reports a failed write in the background once, at the next call."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not is_disk_full(error):
                raise
            raise DiskFull(
                f"{self._folder} had no room for a checkpoint ({one_line(error)})"
            ) from error

    def latest_step(self) -> int | None:
        """Returns the number of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def host(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint keeps beside the device's state.

        Raises:
          UserError: it is damaged.
        """
        arguments = ocp.args.Composite(host=ocp.args.JsonRestore())
        with self._damage_explained(step):
            return self._manager.restore(step, args=arguments)["host"]

    def state(self, step: int, like: Any) -> Any:
        """Returns the state of a checkpoint.

        Args:
          step: its number.
          like: a tree of `jax.ShapeDtypeStruct` with shardings, which decide where the
            arrays go: a checkpoint may come from another kind of device.

        Raises:
          UserError: it is damaged.
        """
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        with self._damage_explained(step):
            return self._manager.restore(step, args=arguments)["state"]

    def parts(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Returns parts of the state, also from a checkpoint of an earlier version.

        Args:
          step: its number.
          like: see `state`; nested dicts that hold the wanted leaves alone.

        Raises:
          UserError: it is damaged.
        """
        folder = (self._folder / str(step) / "state").absolute()
        handler = ocp.PyTreeCheckpointHandler()
        with self._damage_explained(step), contextlib.closing(handler):
            stored = flatten_dict(handler.metadata(folder).tree)
            wanted = flatten_dict(like)
            names = {
                name: name if name in stored else EARLIER_NAMES[name] for name in wanted
            }
            like = unflatten_dict({names[name]: x for name, x in wanted.items()})
            arguments = ocp.args.PyTreeRestore(
                like,
                restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                partial_restore=True,
            )
            found = flatten_dict(handler.restore(folder, args=arguments))
            return unflatten_dict({name: found[names[name]] for name in wanted})

    @contextlib.contextmanager
    def _damage_explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds: Orbax, TensorStore, JSON, the disk
            what = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"{self._folder / str(step)} cannot be read ({what}): delete it, and "
                "the run goes on with the checkpoint before it"
            ) from error

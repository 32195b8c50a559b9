"""Checkpoints with Orbax: the training state, and the host's counters beside it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.config import CheckpointConfig
from cramjax.errors import DiskFull, UserError, is_disk_full, one_line

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

    def check_room(self, state: Any) -> None:
        """Raises `DiskFull` if the disk has no room for a checkpoint now."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise DiskFull(
                f"{self._folder} has no room for a checkpoint: it takes "
                f"{needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
            )

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Copies the state off the device and writes it in the background.

        A step that is there already is kept: it is the same state.

        Raises:
          DiskFull: there is no room for it, or was none for the one before.
        """
        if step == self._manager.latest_step():
            return
        self.check_room(state)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
        )
        with self._room_explained():
            self._manager.save(step, args=arguments, force=True)

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          DiskFull: the last checkpoint could not be written.
        """
        with self._room_explained():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _room_explained(self) -> Iterator[None]:
        """Orbax says once, at the next call, that a write in the background failed."""
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
        """Returns the host's counters of a checkpoint.

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

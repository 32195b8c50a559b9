"""Follows a run in TensorBoard, Weights & Biases or trackio, beside metrics.jsonl.

A tracker gets the lines of metrics.jsonl and finetune.jsonl when they are written, and
the scores at the end. One that fails gets nothing more, and the run goes on.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.config import Config, flatten, to_dict
from cramjax.errors import UserError, one_line
from cramjax.glue import journal
from cramjax.training import log as metrics_log
from cramjax.training.pretrain import METRICS

logger = logging.getLogger(__name__)

NAME = "tracked_as"  # in the workdir: the run's name, and its id, in every tracker
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
# Of a line: not measured, or a part of the numbers' names.
NOT_LOGGED = {"time", "step", "event", "task", "start", "rate", "trials", "dev_rows"}


def check(config: Config) -> None:
    """Raises a `UserError` if a tracker of `log.trackers` is not installed."""
    for name in config.log.trackers:
        if not importlib.util.find_spec(PACKAGES[name]):
            raise UserError(
                f"config.log.trackers is {config.log.trackers}: {PACKAGES[name]} is not"
                f" installed; pip install -e '.[{name}]', or leave {name!r} out"
            )


class TensorBoard:
    """Event files in tensorboard/ of the workdir."""

    def __init__(self, config: Mapping[str, Any], workdir: Path):
        """Begins a file, with the config as text."""
        writer = importlib.import_module(PACKAGES["tensorboard"]).SummaryWriter
        self._begin = functools.partial(writer, str(workdir / "tensorboard"))
        self._writer = self._begin(filename_suffix=f".{time.time_ns()}")
        text = "\n".join(f"    {key} = {value!r}" for key, value in config.items())
        self._writer.add_text("config", text)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Adds numbers at a step."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def go_back(self, step: int) -> None:
        """Begins a file that hides what was logged after the step."""
        self._writer.close()
        suffix = f".{time.time_ns()}"
        self._writer = self._begin(purge_step=step + 1, filename_suffix=suffix)

    def finish(self) -> None:
        """Writes what is left."""
        self._writer.close()


def _start(tracker: str, config: Config, workdir: Path) -> Any:
    """Starts or continues the run; W&B and trackio have the same functions."""
    values = flatten(to_dict(config))
    if tracker == "tensorboard":
        return TensorBoard(values, workdir)
    if not (workdir / NAME).exists():
        name = "-".join((*workdir.absolute().parts[-2:], uuid.uuid4().hex[:8]))
        files.write_text(workdir / NAME, name)
    name = (workdir / NAME).read_text()
    own = {"id": name[-8:], "dir": str(workdir), "settings": {"console": "off"}}
    return importlib.import_module(PACKAGES[tracker]).init(
        project=os.environ.get(f"{tracker.upper()}_PROJECT", "cramjax"),
        name=name,
        config=values,
        resume="allow",
        **(own if tracker == "wandb" else {}),
    )


class Trackers:
    """The trackers of a run, as one sink for lines; a context manager."""

    def __init__(self, config: Config, workdir: Path):
        """Starts them, or continues the run that they have of this workdir."""
        lines = metrics_log.read(workdir / METRICS)
        self._step = lines[-1]["step"] if lines else 0
        # Fine-tuning counts on, a step for each line: W&B wants them to increase.
        self._step += len(metrics_log.read(workdir / journal.LOG))
        self._open: dict[str, Any] = {}
        for name in config.log.trackers:
            with self._failing(name):
                self._open[name] = _start(name, config, workdir)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._each(lambda tracker: tracker.finish())

    def line(self, line: Mapping[str, Any], went_back: bool = False) -> None:
        """Logs a line; `went_back` if those of later steps will be repeated."""
        self._step = line.get("step", self._step + 1)
        name, first = line.get("event", "train"), 0
        if "task" in line:
            name = f"finetune/{line['task']}/{line['start']}/{line['rate']:g}"
            first = line["trials"][0]
        values = {key: x for key, x in line.items() if key not in NOT_LOGGED}
        self._log(_numbers(name, values, first), went_back)

    def final(self, summary: dict[str, Any], results: dict[str, Any]) -> None:
        """Logs pretrain.json, and the median score of each set."""
        medians = {
            name: {start: x["median"] for start, x in entry["starts"].items()}
            for name, entry in results.items()
        }
        self._log(_numbers("final", summary | {"scores": medians}))

    def _log(self, numbers: dict[str, float], went_back: bool = False) -> None:
        def log(tracker: Any) -> None:
            if went_back and isinstance(tracker, TensorBoard):
                tracker.go_back(self._step)
            tracker.log(numbers, self._step)

        self._each(log)

    def _each(self, action: Callable[[Any], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._failing(name):
                action(tracker)

    @contextlib.contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Lets go of a tracker that fails in the block, with a warning."""
        try:
            yield
        except Exception as error:  # whatever it raises
            self._open.pop(name, None)
            why = f"{type(error).__name__}: {one_line(error)}"
            logger.warning(f"{name} gets nothing more of this run: {why}")


def _numbers(name: str, value: Any, first: int = 0) -> dict[str, float]:
    """Returns the numbers of nested values, by the path to each; lists from `first`."""
    if isinstance(value, (int, float)):
        return {name: value}
    items: Any = value.items() if isinstance(value, Mapping) else ()
    items = enumerate(value, first) if isinstance(value, list) else items
    parts = (_numbers(f"{name}/{key}", x, first) for key, x in items)
    return {path: number for part in parts for path, number in part.items()}

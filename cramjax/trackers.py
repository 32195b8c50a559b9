"""Follows a run in TensorBoard, Weights & Biases or trackio, beside metrics.jsonl."""

import importlib.util
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.config import TRACKERS, Config, flatten, require, to_dict
from cramjax.errors import one_line
from cramjax.glue.job import LOG
from cramjax.training import log as metrics_log
from cramjax.training.pretrain import METRICS

logger = logging.getLogger(__name__)

TB = "tensorboard"
NAME = "tracked_as"  # in the workdir: the run's name in W&B and trackio
NOT_LOGGED = ("step", "rate", "trials", "dev_rows")


def check(config: Config) -> None:
    """Raises a `UserError` if one of `log.trackers` is not installed."""
    for name in config.log.trackers:
        found = importlib.util.find_spec(TRACKERS[name]) is not None
        allowed = f"left out, or installed: pip install -e '.[{name}]'"
        require(found, "log.trackers", name, allowed)


class Trackers:
    """Hands lines to trackers until they fail, which ends no run; a context manager."""

    def __init__(self, config: Config, workdir: Path):
        """Starts them, or continues the workdir's run in them."""
        lines, tuned = (metrics_log.read(workdir / name) for name in (METRICS, LOG))
        self._step = (lines[-1]["step"] if lines else 0) + len(tuned)
        self._running: dict[str, Any] = dict.fromkeys(config.log.trackers)
        self._each(
            lambda name, _: self._running.update({name: _start(name, config, workdir)})
        )

    def __enter__(self):
        metrics_log.SINKS.append(self.log)
        return self

    def __exit__(self, *_):
        metrics_log.SINKS.remove(self.log)
        self._each(lambda name, x: x.close() if name == TB else x.finish())

    def log(self, line: dict[str, Any], went_back: bool = False) -> None:
        """Logs a line's numbers; `went_back` if those of later steps are void."""
        self._step = line.get("step", self._step + 1)  # W&B's may only increase
        name, first = line.get("event", "train"), line.get("trials", [0])[0]
        if "task" in line:
            name = "finetune/{task}/{start}/{rate:g}".format_map(line)
        values = {key: x for key, x in line.items() if key not in NOT_LOGGED}
        flat = flatten(values, f"{name}/")
        for key in [key for key, x in flat.items() if isinstance(x, list)]:  # trials
            flat |= {f"{key}/{i}": x for i, x in enumerate(flat[key], first)}
        numbers = {key: x for key, x in flat.items() if isinstance(x, (int, float))}

        def log(name: str, tracker: Any) -> None:
            if name != TB:
                return tracker.log(numbers, self._step)
            if went_back:  # hides what its files have of later steps
                tracker.close()
                tracker.purge_step = self._step + 1
            for key, number in numbers.items():
                tracker.add_scalar(key, number, self._step)

        self._each(log)

    def _each(self, action: Callable[[str, Any], Any]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                action(name, tracker)
            except Exception as error:  # whatever it raises
                del self._running[name]
                why = f"{type(error).__name__}: {one_line(error)}"
                logger.warning(f"{name} gets nothing more of this run: {why}")


def _start(tracker: str, config: Config, workdir: Path) -> Any:
    """Starts or continues the run; W&B and trackio have the same functions."""
    module = importlib.import_module(TRACKERS[tracker])
    values = flatten(to_dict(config))
    if tracker == TB:
        suffix = f".{time.time_ns()}"  # two sessions may start within a second
        writer = module.SummaryWriter(str(workdir / TB), filename_suffix=suffix)
        writer.add_text("config", json.dumps(values, indent=4))
        return writer
    if not (path := workdir / NAME).exists():
        parts = (*workdir.absolute().parts[-2:], uuid.uuid4().hex[:8])
        files.write_text(path, "-".join(parts))
    name = path.read_text()
    project = os.environ.get(f"{tracker.upper()}_PROJECT", "cramjax")
    same = {"project": project, "name": name, "config": values, "resume": "allow"}
    own = {"id": name[-8:], "dir": str(workdir), "settings": {"console": "off"}}
    return module.init(**same, **(own if tracker == "wandb" else {}))

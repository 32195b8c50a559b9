"""The progress line: one stage of the job at a time, and what comes after it."""

import datetime
import logging
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import Progress, TextColumn

logger = logging.getLogger(__name__)

PLAIN_EVERY_S = 20.0
# {name: size} of the stages still to come, in order.
_to_come: dict[str, str] = {}


def plan(stages: Mapping[str, str]) -> None:
    """Announces a job's stages, for example {"pretraining": "24 hours"}."""
    _to_come.clear()
    _to_come.update(stages)


class Stage:
    """A live line on a terminal, plain lines elsewhere; a context manager."""

    def __init__(self, name: str):
        """Shows nothing yet; `name` is as in `plan`, or a job of its own."""
        self._name = name
        if name in _to_come:  # and so those before it are over
            while next(iter(_to_come)) != name:
                _to_come.pop(next(iter(_to_come)))
            _to_come.pop(name)
        self._then = "".join(
            f"  then {name} ({size})" for name, size in _to_come.items()
        )
        self._start: tuple[float, float] | None = None
        self._last_plain = 0.0
        self._live = Progress(
            TextColumn("{task.description}"),
            console=Console(),
            disable=not sys.stdout.isatty(),
        )
        self._task = self._live.add_task(f"{name}: starting")

    def __enter__(self):
        self._live.start()
        return self

    def __exit__(self, *_):
        self._live.stop()

    def update(self, done: float, text: str) -> None:
        """Shows the fraction that is done, the time left, and a text.

        The first call only starts the clock: compilation, before it, happens once.
        """
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
            return
        start, start_done = self._start
        left = "-"
        if done > start_done:
            left_s = (1 - done) * (now - start) / (done - start_done)
            left = str(datetime.timedelta(seconds=round(left_s)))
        text = f"{self._name} {done:6.1%}  left {left}  {text}{self._then}"
        self._live.update(self._task, description=text)
        due = now - self._last_plain > PLAIN_EVERY_S or done >= 1
        if self._live.disable and due:
            self._last_plain = now
            logger.info(text)

    def part(self, start: float, size: float) -> Callable[[float, str], None]:
        """Returns `update` for a part of the stage; both are fractions of the stage."""
        return lambda done, text: self.update(start + size * done, text)

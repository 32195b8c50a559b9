"""How long things take, and how much of the benchmark's time is left."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from cramjax.data.corpus import Corpus
from cramjax.data.order import BlockStream
from cramjax.errors import UserError, one_line

logger = logging.getLogger("cramjax.bench")

READ_ROWS = 128  # blocks of a batch when reading is timed


class Deadline:
    """The end of the benchmark.

    Attributes:
      left_out: (what, why) of everything that was not measured.
    """

    def __init__(self, seconds: float):
        """Starts counting."""
        self._start, self._seconds = time.monotonic(), seconds
        self.left_out: list[tuple[str, str]] = []

    @property
    def used_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def left_s(self) -> float:
        """Seconds until the end; negative after it."""
        return self._seconds - self.used_s

    def attempt(self, what: str, needed_s: float, work: Callable[[], Any]) -> Any:
        """Returns `work()`; None, with an entry in `left_out`, if it fails or is late.

        Args:
          what: the name of this measurement in the log and in `left_out`.
          needed_s: an estimate; the work is not begun unless that much time is left.
          work: the measurement. Whatever it raises, earlier measurements are kept.
        """
        if needed_s > self.left_s:
            left_s = max(self.left_s, 0)
            why = f"{left_s:.0f}s left, about {needed_s:.0f}s needed"
            self.left_out.append((what, why))
            return None
        logger.info(f"{what} ({self.used_s:.0f}s so far)")
        try:
            return work()
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.left_out.append((what, kind + one_line(error)))
            return None


def seconds_of(work: Callable[[], object]) -> float:
    """Returns the duration of `work()`, which has to wait for the device itself."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def alternate(
    sides: Mapping[str, Callable[[], object]], rounds: int, deadline: Deadline
) -> dict[str, list[float]]:
    """Runs the sides in turn for some rounds; returns the seconds of each run.

    Other programs on the machine then slow down all sides alike. No round but the first
    begins if it is expected to end after the deadline.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    round_s = 0.0
    for number in range(rounds):
        if number and round_s > deadline.left_s:
            break
        for name, work in sides.items():
            seconds[name].append(seconds_of(work))
        round_s = sum(times[-1] for times in seconds.values())
    return seconds


def ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Returns median, min and max of the pairwise ratios, and their number."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    return {
        "median": median(found),
        "min": min(found),
        "max": max(found),
        "rounds": len(found),
    }


def read_speed(corpus: Corpus, order: str, seed: int, seconds: float) -> float:
    """Returns tokens/s of reading consecutive batches of READ_ROWS blocks."""
    stream = BlockStream(corpus, order, seed)
    stream.take(0, READ_ROWS)
    start, position = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        stream.take(position, READ_ROWS)
        position += READ_ROWS
    return position * corpus.train.length / (time.monotonic() - start)

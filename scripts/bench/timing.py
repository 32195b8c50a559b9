"""Seconds: how many are left, and how long programs take beside one another.

It imports no JAX: scripts/measure_data.py measures the memory of the data alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from cramjax.data.corpus import Corpus
from cramjax.data.order import BlockStream

READ_ROWS = 128  # blocks of a batch, where reading is timed


class Deadline:
    """What still fits into the benchmark's time, and what was left out.

    Attributes:
      left_out: (what, why) of all that was not measured.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        """Starts counting."""
        self._now, self._start, self._seconds = now, now(), seconds
        self.left_out: list[tuple[str, str]] = []

    @property
    def used_s(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    @property
    def left_s(self) -> float:
        """Seconds until the end; negative after it."""
        return self._seconds - self.used_s

    def allows(self, what: str, needed_s: float) -> bool:
        """Returns whether there is time; if not, `what` counts as left out."""
        if needed_s <= self.left_s:
            return True
        left_s = max(self.left_s, 0)
        self.skip(what, f"{left_s:.0f}s left, about {needed_s:.0f}s needed")
        return False

    def skip(self, what: str, why: str) -> None:
        """Notes that something is not measured."""
        self.left_out.append((what, why))


def seconds_of(work: Callable[[], object]) -> float:
    """Returns how long it takes; it must wait for the device itself."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def alternate(
    sides: Mapping[str, Callable[[], object]], rounds: int, deadline: Deadline
) -> dict[str, list[float]]:
    """Runs one side after the other, again and again; returns seconds of each run.

    What else the machine does then slows all sides alike. After the first round, no
    round begins that might not end before the deadline.
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
    """Returns median, min and max of pairwise ratios, and how many there are."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    return {
        "median": median(found),
        "min": min(found),
        "max": max(found),
        "rounds": len(found),
    }


def read_speed(corpus: Corpus, order: str, seed: int, seconds: float) -> float:
    """Returns tokens/s of reading batches of READ_ROWS blocks, one after the other."""
    stream = BlockStream(corpus, order, seed)
    stream.batch(0, READ_ROWS)
    start, position = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        stream.batch(position, READ_ROWS)
        position += READ_ROWS
    return position * corpus.train.length / (time.monotonic() - start)

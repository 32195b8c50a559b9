"""How far a run has got, in steps, tokens, FLOPs and seconds: the loop's only clock."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cramjax.config import BudgetConfig

# What a second can go to. "training" is everything that is not said to be something
# else, data loading included; "lost" is work undone by a crash or a step back.
CHARGED = ("training", "lost", "compilation", "checkpoints")
FREE = ("validation", "idle")


def tokens_bought(
    budget: BudgetConfig, tokens_per_s: float, flops_per_token: float
) -> float:
    """Returns the tokens that a budget pays for at this speed."""
    return {
        "hours": budget.hours * 3600 * tokens_per_s,
        "tokens": budget.tokens,
        "flops": budget.flops / flops_per_token,
    }[budget.kind]


class Clock:
    """The progress of a run over all of its sessions; kept in every checkpoint.

    Learning rate, batch size and the end of training are functions of `progress()`. A
    wall-clock budget counts the seconds of `CHARGED`: everything between the loop's
    start and its end except validation.

    Attributes:
      step: micro-steps handed to the device.
      updates: optimizer steps that were read back.
      position: blocks read; the next batch begins here.
      tokens: tokens trained on.
      flops: model FLOPs of these.
    """

    def __init__(
        self,
        budget: BudgetConfig,
        saved: Mapping[str, Any] | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock, from what an earlier session has `saved()`."""
        saved = saved or {}
        self._budget = budget
        self._now = now
        self._seconds = dict.fromkeys((*CHARGED, *FREE), 0.0) | saved.get("seconds", {})
        self._kind, self._since = "training", now()
        self._set_counts(saved)

    def _set_counts(self, saved: Mapping[str, Any]) -> None:
        self.step = saved.get("step", 0)
        self.updates = saved.get("updates", 0)
        self.position = saved.get("position", 0)
        self.tokens = saved.get("tokens", 0)
        self.flops = saved.get("flops", 0.0)

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as JSON values."""
        return {
            "step": self.step,
            "updates": self.updates,
            "position": self.position,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds,
        }

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far, {kind: seconds} for the kinds of `CHARGED` and `FREE`."""
        running = self._now() - self._since
        return self._seconds | {self._kind: self._seconds[self._kind] + running}

    @property
    def elapsed_s(self) -> float:
        """Seconds so far that a wall-clock budget counts."""
        seconds = self.seconds
        return sum(seconds[kind] for kind in CHARGED)

    def progress(self) -> float:
        """Returns the fraction of the budget that is spent, in [0, 1]."""
        used, total = {
            "hours": (self.elapsed_s, self._budget.hours * 3600),
            "tokens": (self.tokens, self._budget.tokens),
            "flops": (self.flops, self._budget.flops),
        }[self._budget.kind]
        return min(used / total, 1.0)

    def advance(self, blocks: int, tokens: int, flops: float) -> None:
        """Counts a micro-step that has been handed to the device."""
        self.step += 1
        self.position += blocks
        self.tokens += tokens
        self.flops += flops

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Counts the block's seconds as `kind`, one of `CHARGED` or `FREE`."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, kind: str) -> str:
        self._seconds = self.seconds
        self._since = self._now()
        before, self._kind = self._kind, kind
        return before

    def restart(self) -> None:
        """Forgets the time since the clock was made: preparing it is not charged."""
        self._since = self._now()

    def charge(self, kind: str, seconds: float) -> None:
        """Counts seconds as `kind` that passed while the clock did not run."""
        self._seconds[kind] += seconds

    def go_back(self, saved: Mapping[str, Any]) -> None:
        """Returns to a checkpoint; the seconds charged since then are lost."""
        self._set_counts(saved)
        self._switch(self._kind)
        kept = saved.get("seconds", {})
        for kind in CHARGED:
            if kind != "lost":
                before = kept.get(kind, 0.0)
                self._seconds["lost"] += self._seconds[kind] - before
                self._seconds[kind] = before

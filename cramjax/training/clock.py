"""How far a run has got, in steps, tokens, FLOPs and seconds.

The budget depends on no other clock.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cramjax.config import BudgetConfig

# Kinds of seconds. "training" is everything that is not measured as another kind, data
# loading included; "lost" is work undone by a crash or a rollback.
CHARGED = ("training", "lost", "compilation", "checkpoints")
FREE = ("validation", "idle")
COUNTS = ("step", "updates", "position", "tokens", "flops")


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
    wall-clock budget counts the seconds of `CHARGED`: those of `FREE` are free.

    Attributes:
      step: micro-steps handed to the device.
      updates: optimizer steps whose metrics were read back.
      position: blocks used; the next batch begins here.
      tokens: tokens trained on.
      flops: model FLOPs of these tokens.
      agreed: the progress that several processes agreed on last; None in one process.
    """

    def __init__(
        self,
        budget: BudgetConfig,
        saved: Mapping[str, Any] | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock, from an earlier session's `saved()` if there is one."""
        self._budget = budget
        self._now = now
        self._kind, self._since = "training", now()
        self.agreed: float | None = None
        self._set(saved or {})

    def _set(self, saved: Mapping[str, Any]) -> None:
        for name in COUNTS:
            setattr(self, name, saved.get(name, 0))
        self._seconds = dict.fromkeys((*CHARGED, *FREE), 0.0) | saved.get("seconds", {})

    def saved(self) -> dict[str, Any]:
        """Returns the clock's state as JSON values."""
        return {name: getattr(self, name) for name in COUNTS} | {
            "seconds": self.seconds
        }

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far by kind, `CHARGED` and `FREE`."""
        running = self._now() - self._since
        return self._seconds | {self._kind: self._seconds[self._kind] + running}

    @property
    def elapsed_s(self) -> float:
        """Seconds so far that a wall-clock budget counts."""
        seconds = self.seconds
        return sum(seconds[kind] for kind in CHARGED)

    def progress(self) -> float:
        """Returns the fraction of the budget already spent, in [0, 1]."""
        if self.agreed is not None and self._budget.kind == "hours":
            return self.agreed
        return self.measured()

    def measured(self) -> float:
        """Returns the progress by this process's own clock."""
        spent, total = {
            "hours": (self.elapsed_s, self._budget.hours * 3600),
            "tokens": (self.tokens, self._budget.tokens),
            "flops": (self.flops, self._budget.flops),
        }[self._budget.kind]
        return min(spent / total, 1.0)

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
        self._seconds, self._since = self.seconds, self._now()
        before, self._kind = self._kind, kind
        return before

    def restart(self) -> None:
        """Discards the seconds since the clock was made, which prepared training."""
        self._since = self._now()

    def add_seconds(self, kind: str, seconds: float) -> None:
        """Counts seconds as `kind` that passed while the clock was not running."""
        self._seconds[kind] += seconds

    def roll_back(self, saved: Mapping[str, Any]) -> None:
        """Returns to a checkpoint; the seconds charged since then are lost."""
        spent_s, now = self.elapsed_s, self.seconds
        self._set(saved)
        self._since = self._now()
        self._seconds |= {kind: now[kind] for kind in FREE}
        self._seconds["lost"] += spent_s - self.elapsed_s

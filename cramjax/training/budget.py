"""The only clock the training loop sees."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from cramjax.config import BudgetConfig

# What a second can go to. "training" is all that is not said to be something else, data
# loading included; "lost" is work that a crash or a step back took with it.
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


class BudgetClock:
    """How much of the budget is used; drives learning rate, batch ramp and stop.

    A wall-clock budget counts the seconds of `CHARGED`: everything between the loop's
    start and its end but validation, over all sessions of a run. A token or FLOP budget
    counts what is given to `add`.

    Attributes:
      tokens: tokens trained on, over all sessions of a run.
      flops: model FLOPs of these.
    """

    def __init__(
        self,
        budget: BudgetConfig,
        *,
        seconds: Mapping[str, float] | None = None,
        tokens: int = 0,
        flops: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock, from what a resumed run has already used."""
        self._budget = budget
        self._now = now
        self._seconds = dict.fromkeys((*CHARGED, *FREE), 0.0) | dict(seconds or {})
        self._kind, self._since = "training", now()
        self.tokens, self.flops = tokens, flops

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

    def charge(self, kind: str, seconds: float) -> None:
        """Counts seconds as `kind` that went by before the clock began."""
        self._seconds[kind] += seconds

    def add(self, tokens: int, flops: float) -> None:
        """Counts tokens whose step has been handed to the device, and their FLOPs."""
        self.tokens += tokens
        self.flops += flops

    def lose(self, kept: Mapping[str, float]) -> None:
        """Counts all charged seconds since `kept` as lost: their work is undone."""
        self._switch(self._kind)
        for kind in CHARGED:
            if kind != "lost":
                before = kept.get(kind, 0.0)
                self._seconds["lost"] += self._seconds[kind] - before
                self._seconds[kind] = before

    def progress(self) -> float:
        """Returns the used share of the budget, in [0, 1]."""
        used, total = {
            "hours": (self.elapsed_s, self._budget.hours * 3600),
            "tokens": (self.tokens, self._budget.tokens),
            "flops": (self.flops, self._budget.flops),
        }[self._budget.kind]
        return min(used / total, 1.0)

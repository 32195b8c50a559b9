"""The only clock the training loop sees."""

import contextlib
import time
from collections.abc import Callable, Iterator

from cramjax.schema import BudgetConfig


class BudgetClock:
    """How much of the budget is used; drives learning rate, batch ramp and stop.

    A wall-clock budget counts everything between the loop's start and its end except
    what runs under `paused()`: compilation, data loading and checkpoints are inside.
    Validation comes after the loop. A token or FLOP budget counts the tokens given to
    `add`.

    Attributes:
      elapsed_s: seconds counted, over all sessions of a run.
      tokens: tokens trained on, over all sessions of a run.
    """

    def __init__(
        self,
        budget: BudgetConfig,
        flops_per_token: float,
        *,
        elapsed_s: float = 0.0,
        tokens: int = 0,
        now: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock, from what a resumed run has already used."""
        self._budget = budget
        self._flops_per_token = flops_per_token
        self._now = now
        self._start = now() - elapsed_s
        self.tokens = tokens

    @property
    def elapsed_s(self) -> float:
        """Seconds counted so far."""
        return self._now() - self._start

    def add(self, tokens: int) -> None:
        """Counts tokens whose step has been handed to the device."""
        self.tokens += tokens

    @property
    def flops(self) -> float:
        """Model FLOPs so far."""
        return self.tokens * self._flops_per_token

    def progress(self) -> float:
        """Returns the used share of the budget, in [0, 1]."""
        used, total = {
            "hours": (self.elapsed_s, self._budget.hours * 3600),
            "tokens": (self.tokens, self._budget.tokens),
            "flops": (self.flops, self._budget.flops),
        }[self._budget.kind]
        return min(used / total, 1.0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while the block runs."""
        stopped = self._now()
        try:
            yield
        finally:
            self._start += self._now() - stopped

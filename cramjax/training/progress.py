"""What one sees while it trains: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from cramjax.config import BudgetConfig
from cramjax.training.budget import BudgetClock
from cramjax.training.counters import Counters

PLAIN_EVERY_S = 10.0
PASSES_KNOWN_AT = 0.05  # share of the budget after which the speed is believed


class Progress:
    """Share of budget, loss, learning rate, batch size, time left, throughput."""

    def __init__(self, budget: BudgetConfig, corpus_tokens: int):
        """Shows nothing yet.

        Args:
          budget: of the run.
          corpus_tokens: in the training blocks. How often a budget of hours goes
            through them is known once the speed is, and said if it is more than once.
        """
        self._corpus_tokens = corpus_tokens if budget.kind == "hours" else 0
        self._start: tuple[float, float, int] | None = None
        self._last_plain = 0.0
        self._live = None
        if sys.stdout.isatty():
            self._live = RichProgress(
                TextColumn("pretraining {task.percentage:5.1f}%"),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=Console(),
            )
            self._task = self._live.add_task("compiling", total=1.0)

    def __enter__(self):
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live:
            self._live.stop()

    def update(
        self, clock: BudgetClock, counters: Counters, line: Mapping[str, float]
    ) -> None:
        """Shows the state after a step.

        Args:
          clock: the budget's.
          counters: the host's.
          line: what `throughput.Throughput.line` said last.
        """
        used, now = clock.progress(), time.monotonic()
        if self._start is None:  # the first step compiles: rates count from its end
            self._start = (now, used, clock.tokens)
            return
        start, start_used, start_tokens = self._start
        seconds = max(now - start, 1e-9)
        rate = (clock.tokens - start_tokens) / seconds
        left_s = (1 - used) * seconds / max(used - start_used, 1e-9)
        if self._corpus_tokens and used > PASSES_KNOWN_AT:
            self._tell_passes(clock.tokens + rate * left_s)
        latest, window = counters.latest, counters.window
        loss = sum(window) / len(window) if window else counters.last_loss
        text = (
            f"loss {'-' if loss is None else f'{loss:.3f}'}  "
            f"{_si(line.get('tokens_per_s', rate))} tokens/s  "
            f"lr {latest.get('learning_rate', 0):.2e}  "
            f"batch {latest.get('batch_size', 0)}  left {_duration(left_s)}"
            f"{_device(line)}{_skipped(latest['skipped'])}"
        )
        if self._live:
            self._live.update(self._task, completed=used, description=text)
        elif now - self._last_plain > PLAIN_EVERY_S or used >= 1:
            self._last_plain = now
            print(f"pretraining {used:6.1%}  {text}", flush=True)

    def say(self, line: str) -> None:
        """Prints a line of its own."""
        if self._live:
            self._live.console.print(line)
        else:
            print(line, flush=True)

    def _tell_passes(self, tokens: float) -> None:
        passes, self._corpus_tokens = tokens / self._corpus_tokens, 0
        if passes > 1:
            self.say(f"budget: at this speed {passes:.1f} passes over the corpus")


def _device(line: Mapping[str, float]) -> str:
    """Returns what is known of it, e.g. "  mfu 41%  9.8 GB  1.21 kWh"."""
    shown = {
        "mfu": lambda share: f"  mfu {share:.0%}",
        "not_training": lambda share: (
            f"  not training {share:.0%}" if share >= 0.005 else ""
        ),
        "peak_memory_bytes": lambda size: f"  {size / 1e9:.1f} GB",
        "energy_kwh": lambda energy: f"  {energy:.2f} kWh",
    }
    return "".join(show(line[name]) for name, show in shown.items() if name in line)


def _skipped(count: float) -> str:
    return f"  {count} micro-batches skipped: not finite" if count else ""


def _si(value: float) -> str:
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:.1f}k"


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"

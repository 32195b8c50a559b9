"""What training reports: metrics.jsonl, and a line on the screen.

A line of metrics.jsonl is a measurement (`step`, `loss`, `elapsed_s`, ...), or an event
if it has the key `event`. Lines are appended; only `MetricsLog.cut` removes any.
"""

import dataclasses
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cramjax import files
from cramjax.config import BudgetConfig
from cramjax.errors import is_disk_full
from cramjax.training.clock import Clock

logger = logging.getLogger(__name__)

PLAIN_EVERY_S = 10.0
PASSES_KNOWN_AT = 0.05  # fraction of the budget after which the speed is believed


class MetricsLog:
    """Appends lines, each at once; a context manager.

    Lines that do not fit on a full disk are kept, and written once they fit.
    """

    def __init__(self, path: Path):
        """Opens the file for appending, after its last whole line.

        A kill may have cut off the line that was being written.
        """
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._kept = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, **values: Any) -> None:
        """Appends one line, with the time of day in seconds since 1970."""
        self._kept += (json.dumps({"time": time.time(), **values}) + "\n").encode()
        try:
            while self._kept:
                self._kept = self._kept[self._file.write(self._kept) :]
        except OSError as error:
            if not is_disk_full(error):
                raise

    def cut(self, after: int, **event: Any) -> None:
        """Drops what was measured after a step, which will be measured again.

        The event that says so comes in the same write: a kill leaves both or none.
        """
        known = _parsed(self._path.read_bytes() + self._kept)
        lines = [line for line in known if line["step"] <= after]
        lines.append({"time": time.time(), **event})
        self._file.close()
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file, self._kept = self._path.open("ab", buffering=0), b""


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines; the last one is left out if a kill cut it off."""
    return _parsed(path.read_bytes() if path.exists() else b"")


def _parsed(content: bytes) -> list[dict[str, Any]]:
    lines, parsed = content.decode().splitlines(), []
    for number, line in enumerate(lines):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
    return parsed


@dataclasses.dataclass
class Readings:
    """What the micro-steps reported; kept in every checkpoint.

    Attributes:
      window: losses since the last line of metrics.jsonl.
      last_loss: the mean over the window before that, or None.
      latest: learning_rate, grad_norm, batch_size, skipped and bad_in_a_row of the
        last micro-step that was read.
    """

    window: list[float] = dataclasses.field(default_factory=list)
    last_loss: float | None = None
    latest: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"skipped": 0, "bad_in_a_row": 0}
    )

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> "Readings":
        """Returns the readings that a checkpoint has kept, among other values."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: saved[name] for name in names if name in saved})

    @property
    def loss(self) -> float | None:
        """The mean loss since the last line, or of that line."""
        if not self.window:
            return self.last_loss
        return math.fsum(self.window) / len(self.window)

    def close_window(self) -> None:
        """Begins a new window."""
        self.last_loss, self.window = self.loss, []


class ProgressLine:
    """A live line on a terminal, plain lines elsewhere; a context manager.

    It shows the spent fraction of the budget, loss, throughput, learning rate, batch
    size and time left.
    """

    def __init__(self, budget: BudgetConfig, corpus_tokens: int):
        """Shows nothing yet.

        Args:
          budget: of the run.
          corpus_tokens: in the training blocks. How often a budget of hours goes
            through them is known once the speed is, and printed if it is more than
            once.
        """
        self._corpus_tokens = corpus_tokens if budget.kind == "hours" else 0
        self._start: tuple[float, float, int] | None = None
        self._last_plain = 0.0
        self._live = None
        if sys.stdout.isatty():
            self._live = Progress(
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
        self, clock: Clock, readings: Readings, throughput: Mapping[str, float]
    ) -> None:
        """Shows the state after a step.

        Args:
          clock: of the run.
          readings: of the micro-steps.
          throughput: what `monitor.Throughput.line` returned last.
        """
        used, now = clock.progress(), time.monotonic()
        if self._start is None:  # the first step compiles: rates count from its end
            self._start = (now, used, clock.tokens)
            return
        start, start_used, start_tokens = self._start
        seconds = max(now - start, 1e-9)
        tokens_per_s = (clock.tokens - start_tokens) / seconds
        left_s = (1 - used) * seconds / max(used - start_used, 1e-9)
        if self._corpus_tokens and used > PASSES_KNOWN_AT:
            self._print_passes(clock.tokens + tokens_per_s * left_s)
        latest, loss = readings.latest, readings.loss
        text = (
            f"loss {'-' if loss is None else f'{loss:.3f}'}  "
            f"{_si(throughput.get('tokens_per_s', tokens_per_s))} tokens/s  "
            f"lr {latest.get('learning_rate', 0):.2e}  "
            f"batch {latest.get('batch_size', 0)}  left {_duration(left_s)}"
            f"{_device(throughput)}{_skipped(latest['skipped'])}"
        )
        if self._live:
            self._live.update(self._task, completed=used, description=text)
        elif now - self._last_plain > PLAIN_EVERY_S or used >= 1:
            self._last_plain = now
            logger.info(f"pretraining {used:6.1%}  {text}")

    def _print_passes(self, tokens: float) -> None:
        passes, self._corpus_tokens = tokens / self._corpus_tokens, 0
        if passes > 1:
            logger.info(f"budget: at this speed {passes:.1f} passes over the corpus")


def _device(throughput: Mapping[str, float]) -> str:
    """Returns what is known of the device, e.g. "  mfu 41%  9.8 GB  1.21 kWh"."""
    shown = {
        "mfu": lambda fraction: f"  mfu {fraction:.0%}",
        "not_training": lambda fraction: (
            f"  not training {fraction:.0%}" if fraction >= 0.005 else ""
        ),
        "peak_memory_bytes": lambda size: f"  {size / 1e9:.1f} GB",
        "energy_kwh": lambda energy: f"  {energy:.2f} kWh",
    }
    return "".join(
        show(throughput[name]) for name, show in shown.items() if name in throughput
    )


def _skipped(count: float) -> str:
    return f"  {count} micro-batches skipped: not finite" if count else ""


def _si(value: float) -> str:
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:.1f}k"


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"

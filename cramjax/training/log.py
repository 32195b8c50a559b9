"""What training reports: metrics.jsonl, and the text of the progress line.

A line of metrics.jsonl is a measurement (`step`, `loss`, `elapsed_s`, ...), or an event
if it has the key `event`. Lines are appended; only `MetricsLog.cut` removes any.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.device import monitor
from cramjax.device.distributed import devices
from cramjax.errors import UserError, disk_fault
from cramjax.training.clock import Clock

# Called with every line that a log has written; True: those of later steps were cut.
SINKS: list[Callable[[dict[str, Any], bool], None]] = []


class MetricsLog:
    """Appends lines, each at once; a context manager.

    Lines that cannot be written, as on a full disk, are kept in memory until they can.
    Of several processes, all but one write to os.devnull.
    """

    def __init__(self, path: Path):
        """Opens the file for appending, after its last whole line.

        A kill may have cut off the line that was being written.
        """
        if path.is_file():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._flush()
        self._file.close()

    def write(self, **values: Any) -> None:
        """Appends one line, with the time of day in seconds since 1970."""
        self._unwritten += (json.dumps({"time": time.time(), **values}) + "\n").encode()
        self._flush()
        for sink in SINKS:
            sink(values, False)

    def _flush(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not disk_fault(error):
                raise

    def cut(self, after: int, **event: Any) -> None:
        """Drops the lines after a step, which will be repeated, and adds an event.

        Both happen in one write, so a kill leaves both or neither.
        """
        if not self._path.is_file():
            return
        known = _parsed(self._path.read_bytes() + self._unwritten, self._path)
        lines = [line for line in known if line.get("step", 0) <= after]
        lines.append({"time": time.time(), **event})
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file.close()
        self._file, self._unwritten = self._path.open("ab", buffering=0), b""
        for sink in SINKS:
            sink(event, True)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines, without a last one that a kill has cut off."""
    return _parsed(path.read_bytes() if path.exists() else b"", path)


def _parsed(content: bytes, path: Path) -> list[dict[str, Any]]:
    *whole, _ = content.split(b"\n")  # the last line is empty or cut off
    try:
        return json.loads(b"[" + b",\n".join(whole) + b"]")
    except ValueError as error:  # it names the line
        raise UserError(f"{path} is damaged ({error}): delete the line") from error


@dataclasses.dataclass
class TrainMetrics:
    """What the micro-steps have reported; kept in every checkpoint."""

    window: list[float] = dataclasses.field(default_factory=list)  # losses since a line
    last_loss: float | None = None  # the mean over the window before this one
    held_out_loss: float | None = None  # as validated last
    # learning_rate, grad_norm, batch_size, skipped and bad_in_a_row of the latest
    # micro-step that was read.
    latest: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"skipped": 0, "bad_in_a_row": 0}
    )

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> "TrainMetrics":
        """Returns those that a checkpoint holds, among other values."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: saved[name] for name in names if name in saved})

    @property
    def loss(self) -> float | None:
        """The mean loss since the last line, or of that line."""
        if not self.window:
            return self.last_loss
        return math.fsum(self.window) / len(self.window)


class Throughput:
    """Measures speed and energy between two lines of metrics.jsonl.

    Attributes:
      latest: what `line` returned last, {} before the first line.
    """

    def __init__(self, clock: Clock, energy_kwh: float | None):
        """Starts to measure; earlier sessions drew `energy_kwh`, if that is known."""
        self._clock = clock
        self._before_kwh, self._first_kwh = energy_kwh, monitor.energy_kwh()
        self.latest: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Begins a new interval."""
        self._start = self._clock.saved()

    def line(self) -> dict[str, float]:
        """Ends the interval; returns those of its numbers that are known.

        `tokens_per_s` (of all GPUs; `tokens_per_s_per_gpu` of each if there are more)
        and `mfu` are over all its seconds; `not_training` is the fraction of these
        spent on compilation, checkpoints or validation. `peak_memory_bytes` is process
        0's in this session, `energy_kwh` its whole card's in all sessions.
        """
        start, end = self._start, self._clock.saved()
        self.restart()
        spent = {kind: s - start["seconds"][kind] for kind, s in end["seconds"].items()}
        seconds = max(sum(spent.values()), 1e-9)
        tokens_per_s, count = (end["tokens"] - start["tokens"]) / seconds, devices()
        numbers = {
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_gpu": tokens_per_s / count if count > 1 else None,
            "mfu": monitor.mfu(end["flops"] - start["flops"], seconds),
            "not_training": 1 - spent["training"] / seconds,
            "peak_memory_bytes": monitor.peak_memory_bytes(),
            "energy_kwh": self.energy_kwh,
        }
        self.latest = {name: x for name, x in numbers.items() if x is not None}
        return self.latest

    @property
    def energy_kwh(self) -> float | None:
        """What the card has drawn so far, in all sessions of the run."""
        now_kwh = monitor.energy_kwh()
        if now_kwh is None or self._first_kwh is None:
            return self._before_kwh
        return (self._before_kwh or 0.0) + now_kwh - self._first_kwh


def progress_text(
    clock: Clock,
    train_metrics: TrainMetrics,
    throughput: Mapping[str, float],
    blocks: int,
) -> str:
    """Returns the state after a step, for the progress line.

    Args:
      clock: the run's.
      train_metrics: the run's.
      throughput: `Throughput.latest`.
      blocks: those of one pass over the text.
    """
    latest, loss = train_metrics.latest, train_metrics.loss
    passes = clock.position / blocks
    parts = [f"loss {'-' if loss is None else f'{loss:.3f}'}"]
    if train_metrics.held_out_loss is not None:
        parts.append(f"held-out {train_metrics.held_out_loss:.3f}")
    parts += [
        *_throughput_parts(throughput),
        f"lr {latest.get('learning_rate', 0):.2e}",
        f"batch {latest.get('batch_size', 0)}",
        f"pass {passes:.1f} of {passes / max(clock.progress(), 1e-9):.1f}",
    ]
    if latest["skipped"]:
        parts.append(f"{latest['skipped']} micro-batches skipped: not finite")
    return "  ".join(parts)


def _throughput_parts(throughput: Mapping[str, float]) -> list[str]:
    """Returns what is known, e.g. ["52.1k tokens/s", "mfu 41%", "9.8 GB"]."""
    parts = []
    if "tokens_per_s" in throughput:
        thousands = throughput["tokens_per_s"] / 1e3
        number = f"{thousands:.1f}k" if thousands < 1e3 else f"{thousands / 1e3:.2f}M"
        parts.append(f"{number} tokens/s")
    if "mfu" in throughput:
        parts.append(f"mfu {throughput['mfu']:.0%}")
    if (fraction := throughput.get("not_training", 0)) >= 0.005:
        parts.append(f"{fraction:.0%} of the time not training")
    if "peak_memory_bytes" in throughput:
        parts.append(f"{throughput['peak_memory_bytes'] / 1e9:.1f} GB")
    if "energy_kwh" in throughput:
        parts.append(f"{throughput['energy_kwh']:.2f} kWh")
    return parts

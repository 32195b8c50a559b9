"""How fast it goes: the numbers of the device beside those of the training."""

import jax

from cramjax.device import gpu_stats
from cramjax.device.cards import Card, of_device
from cramjax.training.budget import BudgetClock

J_PER_KWH = 3.6e6


def card() -> Card | None:
    """Returns the card that is trained on, None if its peak is not known."""
    return of_device(jax.devices()[0].device_kind)


def mfu(flops: float, seconds: float) -> float | None:
    """Returns model FLOPs utilisation: the share of the card's dense 16-bit peak."""
    known = card()
    return flops / seconds / (known.peak_tflops * 1e12) if known else None


def peak_memory_bytes() -> int | None:
    """Returns the most this process has used on the device, if the device counts it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Throughput:
    """What goes into a line of metrics.jsonl, over the time since the line before.

    Attributes:
      latest: of the last line, {} before the first.
    """

    def __init__(self, clock: BudgetClock, energy_kwh: float | None):
        """Begins to count.

        Args:
          clock: the budget's; its seconds and tokens are read.
          energy_kwh: what earlier sessions of the run drew, None if not known.
        """
        self._before_kwh, self._first_kwh = energy_kwh, _meter_kwh()
        self.latest: dict[str, float] = {}
        self.restart(clock)

    def restart(self, clock: BudgetClock) -> None:
        """Begins a new line here."""
        self._seconds = clock.seconds
        self._tokens, self._flops = clock.tokens, clock.flops

    def line(self, clock: BudgetClock) -> dict[str, float]:
        """Ends a line here; returns its numbers, those that are known.

        `tokens_per_s` and `mfu`: over all seconds since the last line. `not_training`:
        the share of these that went to compilation, checkpoints, validation.
        `peak_memory_bytes`: of the device, in this session. `energy_kwh`: of the whole
        card, in all sessions.
        """
        spent = {kind: s - self._seconds[kind] for kind, s in clock.seconds.items()}
        seconds = max(sum(spent.values()), 1e-9)
        numbers = {
            "tokens_per_s": (clock.tokens - self._tokens) / seconds,
            "mfu": mfu(clock.flops - self._flops, seconds),
            "not_training": 1 - spent["training"] / seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "energy_kwh": self.energy_kwh,
        }
        self.latest = {name: x for name, x in numbers.items() if x is not None}
        self.restart(clock)
        return self.latest

    @property
    def energy_kwh(self) -> float | None:
        """What the card has drawn so far, in all sessions of the run."""
        now_kwh = _meter_kwh()
        if now_kwh is None or self._first_kwh is None:
            return self._before_kwh
        return (self._before_kwh or 0.0) + now_kwh - self._first_kwh


def _meter_kwh() -> float | None:
    """Returns what the card has drawn since its driver was loaded."""
    stats = gpu_stats.read() if jax.default_backend() == "gpu" else None
    if stats is None or stats.energy_j is None:
        return None
    return stats.energy_j / J_PER_KWH

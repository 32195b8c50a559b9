"""How fast training goes, and what the graphics card reports about itself.

The card is asked through NVIDIA's management library. The package nvidia-ml-py (module
`pynvml`) comes with the extras cuda12 and cuda13; without it, or without a card, there
is nothing to read.
"""

import ctypes
import dataclasses
import functools
import os
import uuid
from types import ModuleType
from typing import Any, Protocol

import jax

from cramjax.device.cards import Card, of_device

J_PER_KWH = 3.6e6

# Bits of the library's "clocks throttle reasons" that slow a busy card down.
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature, by software",
    0x40: "temperature, by hardware",
    0x80: "power brake",
}


@dataclasses.dataclass(frozen=True)
class GpuStats:
    """One reading; None is what this card or driver does not report."""

    name: str | None
    driver: str | None  # its version
    power_w: float | None  # now
    power_limit_w: float | None  # as set
    energy_j: float | None  # since the driver was loaded: subtract two readings
    memory_used_bytes: int | None  # of all processes
    temperature_c: int | None  # of the chip
    sm_clock_mhz: int | None  # now
    sm_clock_max_mhz: int | None
    throttle_reasons: tuple[str, ...] | None  # now, values of `THROTTLE_REASONS`
    # Computing on the card beside this one. A container may hide them, or show this
    # process under another number, as one of them.
    other_processes: int | None


def read_gpu() -> GpuStats | None:
    """Returns what the card that JAX computes on reports; None where JAX uses no GPU.

    It takes well under a millisecond.
    """
    handle = _handle() if jax.default_backend() == "gpu" else None
    if handle is None:
        return None
    library = _library()

    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(library, function)(*arguments)
        except library.NVMLError:
            return None

    def ask_card(name: str, *arguments: Any) -> Any:
        return ask(f"nvmlDeviceGet{name}", handle, *arguments)

    def thousandth(value: int | None) -> float | None:
        return None if value is None else value / 1000

    memory, bits = ask_card("MemoryInfo"), ask_card("CurrentClocksThrottleReasons")
    processes, sm = ask_card("ComputeRunningProcesses"), library.NVML_CLOCK_SM
    return GpuStats(
        name=ask_card("Name"),
        driver=ask("nvmlSystemGetDriverVersion"),
        power_w=thousandth(ask_card("PowerUsage")),
        power_limit_w=thousandth(ask_card("EnforcedPowerLimit")),
        energy_j=thousandth(ask_card("TotalEnergyConsumption")),
        memory_used_bytes=None if memory is None else memory.used,
        temperature_c=ask_card("Temperature", library.NVML_TEMPERATURE_GPU),
        sm_clock_mhz=ask_card("ClockInfo", sm),
        sm_clock_max_mhz=ask_card("MaxClockInfo", sm),
        throttle_reasons=None
        if bits is None
        else tuple(reason for bit, reason in THROTTLE_REASONS.items() if bits & bit),
        other_processes=None
        if processes is None
        else sum(process.pid != os.getpid() for process in processes),
    )


@functools.cache
def _library() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return None
    return pynvml


@functools.cache
def _handle() -> Any:
    """Returns the library's handle of JAX's card, None if there is none.

    The library counts cards by their place on the bus and sees all of them; CUDA puts
    the fastest one first and leaves out those that CUDA_VISIBLE_DEVICES does not name.
    So where there are several, the UUID identifies the card.
    """
    library = _library()
    if library is None:
        return None
    try:
        if library.nvmlDeviceGetCount() == 1:
            return library.nvmlDeviceGetHandleByIndex(0)
        name = _uuid(jax.devices()[0].local_hardware_id)
        return name and library.nvmlDeviceGetHandleByUUID(name)
    except library.NVMLError:
        return None


def _uuid(ordinal: int) -> str | None:
    """Returns the UUID of CUDA's device of a number, as NVIDIA's tools print it."""
    device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), ordinal)
            or driver.cuDeviceGetUuid(raw, device)
        )
    except (OSError, AttributeError):  # no driver, or an old one
        return None
    return None if failed else f"GPU-{uuid.UUID(bytes=bytes(raw))}"


def card() -> Card | None:
    """Returns the card that JAX computes on, None if its peak is not known."""
    return of_device(jax.devices()[0].device_kind)


def mfu(flops: float, seconds: float) -> float | None:
    """Returns model FLOPs utilization: the fraction of the card's dense 16-bit peak."""
    known = card()
    return flops / seconds / known.peak if known else None


def peak_memory_bytes() -> int | None:
    """Returns the most this process has used on the device, if the device counts it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Clock(Protocol):
    """What is read of the budget's clock."""

    tokens: int
    flops: float
    seconds: dict[str, float]  # by what they went to, of which "training" is one


class Throughput:
    """Measures what goes into a line of metrics.jsonl, since the line before.

    Attributes:
      latest: of the last line, {} before the first.
    """

    def __init__(self, clock: Clock, energy_kwh: float | None):
        """Begins to measure.

        Args:
          clock: the budget's.
          energy_kwh: what earlier sessions of the run drew, None if not known.
        """
        self._before_kwh, self._first_kwh = energy_kwh, _meter_kwh()
        self.latest: dict[str, float] = {}
        self.restart(clock)

    def restart(self, clock: Clock) -> None:
        """Begins a new line here."""
        self._seconds = clock.seconds
        self._tokens, self._flops = clock.tokens, clock.flops

    def line(self, clock: Clock) -> dict[str, float]:
        """Ends a line here; returns those of its numbers that are known.

        `tokens_per_s` and `mfu` are over all seconds since the last line,
        `not_training` is the fraction of these that went to compilation, checkpoints or
        validation. `peak_memory_bytes` is the device's, in this session. `energy_kwh`
        is the whole card's, in all sessions.
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
    stats = read_gpu()
    known = stats is not None and stats.energy_j is not None
    return stats.energy_j / J_PER_KWH if known else None

"""What the graphics card reports about itself, through NVIDIA's management library.

The package nvidia-ml-py (module `pynvml`) comes with the extras cuda12 and cuda13.
"""

import ctypes
import dataclasses
import functools
import os
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from cramjax.device.cards import Card, of_device
from cramjax.device.distributed import devices

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
    """One reading; a value that this card or driver does not report is None."""

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
    # That compute on the card. In a container, this process may be counted as one.
    other_processes: int | None


def read_gpu() -> GpuStats | None:
    """Returns what the card that JAX computes on reports, None without a GPU.

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

    def known(convert: Callable[[Any], Any], value: Any) -> Any:
        return None if value is None else convert(value)

    def thousandth(name: str) -> float | None:
        return known(lambda value: value / 1000, ask_card(name))

    def reasons(bits: int) -> tuple[str, ...]:
        return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)

    def others(processes: list[Any]) -> int:
        return sum(process.pid != os.getpid() for process in processes)

    return GpuStats(
        name=ask_card("Name"),
        driver=ask("nvmlSystemGetDriverVersion"),
        power_w=thousandth("PowerUsage"),
        power_limit_w=thousandth("EnforcedPowerLimit"),
        energy_j=thousandth("TotalEnergyConsumption"),
        memory_used_bytes=known(lambda memory: memory.used, ask_card("MemoryInfo")),
        temperature_c=ask_card("Temperature", library.NVML_TEMPERATURE_GPU),
        sm_clock_mhz=ask_card("ClockInfo", library.NVML_CLOCK_SM),
        sm_clock_max_mhz=ask_card("MaxClockInfo", library.NVML_CLOCK_SM),
        throttle_reasons=known(reasons, ask_card("CurrentClocksThrottleReasons")),
        other_processes=known(others, ask_card("ComputeRunningProcesses")),
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
    """Returns the library's handle of JAX's card, None if it has none.

    The library sees all cards, in the order of their places on the bus. CUDA puts the
    fastest one first and hides those that CUDA_VISIBLE_DEVICES does not name, so that
    of several cards the UUID identifies the one in use.
    """
    library = _library()
    if library is None:
        return None
    try:
        if library.nvmlDeviceGetCount() == 1:
            return library.nvmlDeviceGetHandleByIndex(0)
        name = _uuid(jax.local_devices()[0].local_hardware_id)
        return name and library.nvmlDeviceGetHandleByUUID(name)
    except library.NVMLError:
        return None


def _uuid(ordinal: int) -> str | None:
    """Returns the UUID of CUDA's device `ordinal`, as NVIDIA's tools print it."""
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
    """Returns the card that JAX computes on, None if it is not in `cards.CARDS`."""
    return of_device(jax.local_devices()[0].device_kind)


def mfu(flops: float, seconds: float) -> float | None:
    """Returns model FLOPs utilization: the fraction of the dense 16-bit peak.

    The peak is that of all cards that train.
    """
    known = card()
    return flops / seconds / (devices() * known.peak) if known else None


def peak_memory_bytes() -> int | None:
    """Returns this process's peak memory on the device, None if it is not counted."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def energy_kwh() -> float | None:
    """Returns what the card has drawn since its driver was loaded."""
    stats = read_gpu()
    known = stats is not None and stats.energy_j is not None
    return stats.energy_j / J_PER_KWH if known else None

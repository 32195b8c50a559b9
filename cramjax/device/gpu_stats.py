"""What the graphics card says of itself, through NVIDIA's management library.

The package nvidia-ml-py (module `pynvml`) comes with the extras cuda12 and cuda13;
without it, or without a card, there is nothing to read.
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
    """One reading; None is what this card or driver does not tell.

    Attributes:
      name: of the card.
      driver: its version.
      power_w: drawn now.
      power_limit_w: at most, as set.
      energy_j: drawn since the driver was loaded: subtract two readings.
      memory_used_bytes: of all processes.
      temperature_c: of the chip.
      sm_clock_mhz: now.
      sm_clock_max_mhz: at most.
      throttle_reasons: what slows the clocks now, values of `THROTTLE_REASONS`.
      other_processes: computing on the card beside this one. A container may hide them,
        or show this process under another number, as one of them.
    """

    name: str | None
    driver: str | None
    power_w: float | None
    power_limit_w: float | None
    energy_j: float | None
    memory_used_bytes: int | None
    temperature_c: int | None
    sm_clock_mhz: int | None
    sm_clock_max_mhz: int | None
    throttle_reasons: tuple[str, ...] | None
    other_processes: int | None


def read() -> GpuStats | None:
    """Returns what the card that JAX computes on says; None where none can be asked.

    It takes well under a millisecond.
    """
    library = _library()
    handle = _handle()
    if handle is None:
        return None

    def ask(function: str, *arguments: Any, to: Callable = lambda x: x) -> Any:
        try:
            return to(getattr(library, function)(handle, *arguments))
        except library.NVMLError:
            return None

    sm = library.NVML_CLOCK_SM
    return GpuStats(
        name=ask("nvmlDeviceGetName"),
        driver=_driver(library),
        power_w=ask("nvmlDeviceGetPowerUsage", to=_thousandth),
        power_limit_w=ask("nvmlDeviceGetEnforcedPowerLimit", to=_thousandth),
        energy_j=ask("nvmlDeviceGetTotalEnergyConsumption", to=_thousandth),
        memory_used_bytes=ask("nvmlDeviceGetMemoryInfo", to=lambda m: m.used),
        temperature_c=ask("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", sm),
        sm_clock_max_mhz=ask("nvmlDeviceGetMaxClockInfo", sm),
        throttle_reasons=ask("nvmlDeviceGetCurrentClocksThrottleReasons", to=_reasons),
        other_processes=ask("nvmlDeviceGetComputeRunningProcesses", to=_others),
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
    """Returns the library's name for JAX's card, None if there is none.

    The library counts cards by their place on the bus and sees all of them; CUDA puts
    the fastest one first and leaves out those that CUDA_VISIBLE_DEVICES does not name.
    So one of several is told by its UUID.
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


def _driver(library: ModuleType) -> str | None:
    try:
        return library.nvmlSystemGetDriverVersion()
    except library.NVMLError:
        return None


def _thousandth(value: int) -> float:
    return value / 1000


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(reason for bit, reason in THROTTLE_REASONS.items() if bits & bit)


def _others(processes: list[Any]) -> int:
    return sum(process.pid != os.getpid() for process in processes)

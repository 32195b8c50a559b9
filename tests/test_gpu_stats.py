import os
import sys
from types import SimpleNamespace

import pytest

from cramjax.device import gpu_stats


class NVMLError(Exception):
    pass


def unsupported(*_):
    raise NVMLError("Not Supported")


@pytest.fixture
def library(monkeypatch):
    """Of a card that tells no energy, with two processes on it, one of them us."""
    asked = []

    def handle(kind):
        return lambda key: asked.append((kind, key)) or "card"

    processes = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=-1)]
    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        asked=asked,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetHandleByIndex=handle("index"),
        nvmlDeviceGetHandleByUUID=handle("uuid"),
        nvmlDeviceGetName=lambda card: "NVIDIA H200",
        nvmlDeviceGetPowerUsage=lambda card: 612_500,
        nvmlDeviceGetEnforcedPowerLimit=lambda card: 700_000,
        nvmlDeviceGetTotalEnergyConsumption=unsupported,
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(used=2**30),
        nvmlDeviceGetTemperature=lambda card, sensor: 64,
        nvmlDeviceGetClockInfo=lambda card, clock: {1: 1755}[clock],
        nvmlDeviceGetMaxClockInfo=lambda card, clock: {1: 1980}[clock],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda card: 0x1 | 0x4 | 0x40,
        nvmlDeviceGetComputeRunningProcesses=lambda card: processes,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    forget()
    yield fake
    forget()


def forget():
    gpu_stats._library.cache_clear()
    gpu_stats._handle.cache_clear()


def test_a_reading_has_units_and_none_for_what_is_not_told(library):
    assert gpu_stats.read() == gpu_stats.GpuStats(
        name="NVIDIA H200",
        driver="580.1",
        power_w=612.5,
        power_limit_w=700.0,
        energy_j=None,
        memory_used_bytes=2**30,
        temperature_c=64,
        sm_clock_mhz=1755,
        sm_clock_max_mhz=1980,
        throttle_reasons=("power cap", "temperature, by hardware"),
        other_processes=1,
    )


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, ("index", 0)),
        ("", ("index", 0)),
        ("2,0", ("index", 2)),
        ("GPU-1a2b", ("uuid", "GPU-1a2b")),
    ],
)
def test_it_is_the_first_visible_card(library, monkeypatch, visible, asked):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu_stats.read()
    gpu_stats.read()
    assert library.asked == [asked]


def test_none_without_package_driver_or_card(library, monkeypatch):
    monkeypatch.setattr(library, "nvmlDeviceGetHandleByIndex", unsupported)
    assert gpu_stats.read() is None
    forget()
    monkeypatch.setattr(library, "nvmlInit", unsupported)
    assert gpu_stats.read() is None
    forget()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_stats.read() is None

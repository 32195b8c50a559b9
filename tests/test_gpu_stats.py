import ctypes
import os
import sys
from types import SimpleNamespace

import jax
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
        nvmlDeviceGetCount=lambda: 1,
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


def test_the_only_card_is_not_looked_for(library):
    gpu_stats.read()
    gpu_stats.read()
    assert library.asked == [("index", 0)]


@pytest.fixture
def driver(monkeypatch):
    """CUDA's, which counts two cards in another order than their places."""

    def get(device, ordinal):
        device._obj.value = 1 - ordinal
        return 0

    def get_uuid(raw, device):
        raw[:] = [device.value] * 16
        return 0

    fake = SimpleNamespace(cuInit=lambda flags: 0)
    fake.cuDeviceGet, fake.cuDeviceGetUuid = get, get_uuid
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": fake}.get)
    return fake


def test_of_several_cards_it_is_the_one_that_cuda_names(library, driver, monkeypatch):
    monkeypatch.setattr(library, "nvmlDeviceGetCount", lambda: 2)
    cards = [SimpleNamespace(local_hardware_id=0)]
    monkeypatch.setattr(jax, "devices", lambda: cards)
    gpu_stats.read()
    assert library.asked == [("uuid", "GPU-01010101-0101-0101-0101-010101010101")]
    forget()
    driver.cuInit = lambda flags: 100  # no device
    assert gpu_stats.read() is None


def test_none_without_package_driver_or_card(library, monkeypatch):
    monkeypatch.setattr(library, "nvmlDeviceGetHandleByIndex", unsupported)
    assert gpu_stats.read() is None
    forget()
    monkeypatch.setattr(library, "nvmlInit", unsupported)
    assert gpu_stats.read() is None
    forget()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_stats.read() is None

import ctypes
import json
import os
import sys
import time
from types import SimpleNamespace

import jax
import pytest
from test_clock import FakeTime

from cramjax import report
from cramjax.config import BudgetConfig
from cramjax.device import cards, monitor
from cramjax.training import log as metrics_log
from cramjax.training import pretrain
from cramjax.training.clock import CHARGED, Clock
from cramjax.training.log import ProgressLine, Throughput, TrainMetrics

BUDGET = BudgetConfig(hours=1.0, tokens=0, flops=0.0)


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA RTX A4000", "RTX A4000"),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("NVIDIA RTX A4000 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX A6000-48Q", None),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 96GB HBM3", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 2080", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(kind, title):
    card = cards.of_device(kind)
    assert (card.title if card else None) == title


class Device(SimpleNamespace):
    """An H200 that has drawn `joules`, as JAX and NVIDIA's library show it."""

    device_kind = "NVIDIA H200"
    joules = 7.2e6

    def memory_stats(self):
        return {"peak_bytes_in_use": 30 * 10**9, "bytes_in_use": 1}


@pytest.fixture
def h200(monkeypatch):
    device = Device()
    read = lambda: SimpleNamespace(energy_j=device.joules)  # noqa: E731
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(monitor, "read_gpu", read)
    return device


def test_a_line_is_of_the_time_since_the_line_before(h200):
    time = FakeTime()
    clock = Clock(BUDGET, now=time)
    throughput = Throughput(clock, 0.5)
    time.now += 8
    with clock.measure("checkpoints"):
        time.now += 2
    clock.advance(1, 1_000_000, 989.4e12 * 4)  # of the peak's 10 seconds
    h200.joules += 3.6e6
    assert throughput.latest == {}
    assert throughput.line() == {
        "tokens_per_s": 100_000,
        "mfu": pytest.approx(0.4),
        "not_training": pytest.approx(0.2),
        "peak_memory_bytes": 30 * 10**9,
        "energy_kwh": pytest.approx(1.5),
    }
    time.now += 5
    clock.advance(1, 1_000_000, 0)
    line = throughput.line()
    assert line["tokens_per_s"] == 200_000
    assert line["mfu"] == line["not_training"] == 0
    assert throughput.latest == line


def test_on_a_cpu_what_is_not_known_is_left_out():
    time = FakeTime()
    clock = Clock(BUDGET, now=time)
    throughput = Throughput(clock, None)
    time.now += 1
    assert throughput.line() == {"tokens_per_s": 0, "not_training": 0}


def test_the_progress_line_shows_it_in_short(capsys):
    train_metrics = TrainMetrics(last_loss=2.0, held_out_loss=2.5)
    line = {
        "tokens_per_s": 52_100.0,
        "mfu": 0.367,
        "not_training": 0.021,
        "peak_memory_bytes": 9.84e9,
        "energy_kwh": 1.206,
    }
    clock = SimpleNamespace(tokens=0, position=0, progress=lambda: 1.0)
    with ProgressLine(10) as shown:
        shown.update(clock, train_metrics, {})
        shown.update(clock, train_metrics, line)
    assert "loss 2.000  held-out 2.500  52.1k tokens/s  " in (
        out := capsys.readouterr().out
    )
    assert out.endswith("  mfu 37%  2% of the time not training  9.8 GB  1.21 kWh\n")
    with ProgressLine(10) as shown:
        for _ in range(2):
            shown.update(clock, train_metrics, {"not_training": 0.004})
    assert capsys.readouterr().out.endswith("  left 0:00:00\n")


def test_a_runs_energy_is_that_of_all_its_sessions(tiny, corpus, tmp_path, monkeypatch):
    """A meter that draws 1 J at each reading; a session that was killed drew 2 kWh."""
    joules = iter(range(10**6))
    monkeypatch.setattr(
        "cramjax.device.monitor.energy_kwh", lambda: next(joules) / 3.6e6
    )
    with metrics_log.MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(step=0, elapsed_s=1.0, energy_kwh=2.0)
    _, summary = pretrain.pretrain(tiny, corpus, tmp_path)
    lines = [
        line
        for line in metrics_log.read(tmp_path / "metrics.jsonl")
        if "event" not in line
    ]
    energies = [line["energy_kwh"] for line in lines]
    assert energies == sorted(energies) and energies[1] > 2
    assert energies[-1] < summary["energy_kwh"] < 2.001
    assert 0 <= lines[-1]["not_training"] < 1
    assert summary["mfu"] is None
    saved = json.loads((tmp_path / "checkpoints/40/host/metadata").read_text())
    assert 2 < saved["energy_kwh"] <= summary["energy_kwh"]


def test_sessions_killed_at_once_forget_nothing(tiny, corpus, tmp_path):
    """Between the first line and the first session 100 s passed, and nothing since."""
    path = tmp_path / "metrics.jsonl"
    values = {"step": 1, "elapsed_s": 60.0, "energy_kwh": 2.0}
    path.write_text(json.dumps({"time": time.time() - 100, **values}) + "\n")
    for _ in range(3):
        with (
            pretrain.CheckpointStore(tmp_path / "checkpoints", tiny.checkpoint) as kept,
            metrics_log.MetricsLog(path) as log,
        ):
            session = pretrain.resume(tiny, corpus, kept, log, tmp_path, None, 0.0)
        assert session.throughput.energy_kwh == 2.0
        charged_s = sum(session.clock.seconds[kind] for kind in CHARGED)
        assert 60 <= charged_s < 61
        assert 100 <= session.clock.seconds["idle"] < 160


def test_the_report_has_what_is_known(tiny):
    unknown = dict.fromkeys(("first_step_s", "mfu", "peak_memory_bytes", "energy_kwh"))
    assert report._device_rows(unknown) == []
    summary = unknown | {"mfu": 0.4123, "energy_kwh": 8.1234}
    rows = report._device_rows(summary)
    assert [row[1] for row in rows] == ["41.2%", "8.12 kWh"]


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
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    forget()
    yield fake
    forget()


def forget():
    monitor._library.cache_clear()
    monitor._handle.cache_clear()


def test_a_reading_has_units_and_none_for_what_is_not_told(library):
    assert monitor.read_gpu() == monitor.GpuStats(
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
    monitor.read_gpu()
    monitor.read_gpu()
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
    monkeypatch.setattr(jax, "local_devices", lambda: cards)
    monitor.read_gpu()
    assert library.asked == [("uuid", "GPU-01010101-0101-0101-0101-010101010101")]
    forget()
    driver.cuInit = lambda flags: 100  # no device
    assert monitor.read_gpu() is None


def test_none_without_package_driver_or_card(library, monkeypatch):
    monkeypatch.setattr(library, "nvmlDeviceGetHandleByIndex", unsupported)
    assert monitor.read_gpu() is None
    forget()
    monkeypatch.setattr(library, "nvmlInit", unsupported)
    assert monitor.read_gpu() is None
    forget()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert monitor.read_gpu() is None

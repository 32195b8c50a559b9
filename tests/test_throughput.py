import json
import time
from types import SimpleNamespace

import jax
import pytest
from test_budget import FakeTime

from cramjax import report
from cramjax.device import cards, gpu_stats
from cramjax.device.throughput import Throughput
from cramjax.schema import BudgetConfig
from cramjax.training import metrics_log, pretrain, progress
from cramjax.training.budget import BudgetClock

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
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu_stats, "read", read)
    return device


def test_a_line_is_of_the_time_since_the_line_before(h200):
    time = FakeTime()
    clock = BudgetClock(BUDGET, now=time)
    throughput = Throughput(clock, 0.5)
    time.now += 8
    with clock.measure("checkpoints"):
        time.now += 2
    clock.add(1_000_000, 989.4e12 * 4)  # of the peak's 10 seconds
    h200.joules += 3.6e6
    assert throughput.latest == {}
    assert throughput.line(clock) == {
        "tokens_per_s": 100_000,
        "mfu": pytest.approx(0.4),
        "not_training": pytest.approx(0.2),
        "peak_memory_bytes": 30 * 10**9,
        "energy_kwh": pytest.approx(1.5),
    }
    time.now += 5
    clock.add(1_000_000, 0)
    line = throughput.line(clock)
    assert line["tokens_per_s"] == 200_000
    assert line["mfu"] == line["not_training"] == 0
    assert throughput.latest == line


def test_on_a_cpu_what_is_not_known_is_left_out():
    time = FakeTime()
    clock = BudgetClock(BUDGET, now=time)
    throughput = Throughput(clock, None)
    time.now += 1
    assert throughput.line(clock) == {"tokens_per_s": 0, "not_training": 0}


def test_the_progress_line_shows_it_in_short(capsys):
    counters = SimpleNamespace(latest={"skipped": 0}, window=[], last_loss=2.0)
    line = {
        "tokens_per_s": 52_100.0,
        "mfu": 0.367,
        "not_training": 0.021,
        "peak_memory_bytes": 9.84e9,
        "energy_kwh": 1.206,
    }
    clock = SimpleNamespace(tokens=0, progress=lambda: 1.0)
    with progress.Progress(BUDGET, 1) as shown:
        shown.update(clock, counters, {})
        shown.update(clock, counters, line)
    assert "  52.1k tokens/s  " in (out := capsys.readouterr().out)
    assert out.endswith("  mfu 37%  not training 2%  9.8 GB  1.21 kWh\n")
    with progress.Progress(BUDGET, 1) as shown:
        for _ in range(2):
            shown.update(clock, counters, {"not_training": 0.004})
    assert capsys.readouterr().out.endswith("  left 0:00\n")


def test_a_runs_energy_is_that_of_all_its_sessions(tiny, corpus, tmp_path, monkeypatch):
    """A meter that draws 1 J at each reading; a session that was killed drew 2 kWh."""
    joules = iter(range(10**6))
    monkeypatch.setattr(
        "cramjax.device.throughput._meter_kwh", lambda: next(joules) / 3.6e6
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
    saved = pretrain.CheckpointStore(tmp_path / "checkpoints", tiny.checkpoint)
    with saved:
        counters = saved.host(saved.latest_step())
    assert 2 < counters["energy_kwh"] <= summary["energy_kwh"]


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
            loop = pretrain._take_up(tiny, corpus, kept, log, tmp_path, None)
        assert loop.counters.energy_kwh == 2.0
        assert 60 <= loop.clock.seconds["lost"] < 61
        assert 100 <= loop.clock.seconds["idle"] < 160


def test_the_report_has_what_is_known(tiny):
    unknown = dict.fromkeys(("first_step_s", "mfu", "peak_memory_bytes", "energy_kwh"))
    assert report._device_rows(unknown) == []
    summary = unknown | {"mfu": 0.4123, "energy_kwh": 8.1234}
    rows = report._device_rows(summary)
    assert [row[1] for row in rows] == ["41.2%", "8.12 kWh"]

"""Where numbers were measured: versions, code, card, and what else ran there."""

import dataclasses
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cramjax.data.processes import cores
from cramjax.device import gpu_stats, throughput
from cramjax.version import code_version

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "nvidia-ml-py")


def describe() -> dict[str, Any]:
    """Returns plain values, ready for JSON; None is what is not known."""
    card, stats = throughput.card(), gpu()
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": platform.platform(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "card": card and card.title,
        "peak_tflops": card and card.peak_tflops,
        "cores": cores(),
        "gpu": stats and dataclasses.asdict(stats),
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("XLA_", "JAX_", "OMP_", "CUDA_VISIBLE"))
        },
    }


class Processors(NamedTuple):
    """Seconds at a moment: of time, and that processors were busy with.

    Attributes:
      elapsed_s: since some moment, counted for each processor.
      busy_s: of all processes of the machine.
      own_s: of this one and its children.
    """

    elapsed_s: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> "Processors | None":
        """Reads them; None where there is no /proc/stat."""
        path = Path("/proc/stat")
        if not path.exists():
            return None
        # proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
        user, nice, system, idle, waiting, *rest = map(
            int, path.read_text().split()[1:9]
        )
        busy = user + nice + system + sum(rest)
        ticks = os.sysconf("SC_CLK_TCK")
        return cls((busy + idle + waiting) / ticks, busy / ticks, sum(os.times()[:4]))


def others_share(since: Processors | None) -> float | None:
    """Returns the share of all processors that other programs have used since."""
    now = Processors.now()
    if now is None or since is None:
        return None
    others_s = (now.busy_s - since.busy_s) - (now.own_s - since.own_s)
    return max(others_s, 0.0) / max(now.elapsed_s - since.elapsed_s, 1e-9)


def gpu() -> gpu_stats.GpuStats | None:
    """Returns what the card says; None if it is not the one that computes."""
    return gpu_stats.read() if jax.default_backend() == "gpu" else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

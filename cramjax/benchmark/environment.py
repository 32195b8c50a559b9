"""Where numbers were measured: versions, code, card, and what else ran there."""

import dataclasses
import os
import platform
from importlib import metadata
from typing import Any

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
        "load": os.getloadavg()[0],
        "gpu": stats and dataclasses.asdict(stats),
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("XLA_", "JAX_", "OMP_", "CUDA_VISIBLE"))
        },
    }


def gpu() -> gpu_stats.GpuStats | None:
    """Returns what the card says; None if it is not the one that computes."""
    return gpu_stats.read() if jax.default_backend() == "gpu" else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

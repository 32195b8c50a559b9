"""The benchmark's table, and the description of the machine it was measured on."""

import dataclasses
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from cramjax.data.stages import cores
from cramjax.device import monitor
from cramjax.version import code_version

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "nvidia-ml-py")
COLUMNS = ("tokens/s", "MFU", "memory", "compile", "J per Mtoken")
BUSY = 0.1  # fraction of the CPU used by other programs from which on it is reported
STEADY = 1.5  # highest over lowest ratio up to which a median is quoted


def environment() -> dict[str, Any]:
    """Returns plain values, ready for JSON; None is what is not known."""
    card, stats = monitor.card(), monitor.read_gpu()
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
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


def package_version(name: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processors() -> tuple[float, float, float]:
    """Returns processor seconds so far: in total, busy, and busy with this process.

    They are summed over all processors; 0 where the system has no /proc/stat.
    """
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0, 0.0, 0.0
    # proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
    ticks = [int(x) for x in path.read_text().split()[1:9]]
    busy, per_s = sum(ticks) - ticks[3] - ticks[4], os.sysconf("SC_CLK_TCK")
    return sum(ticks) / per_s, busy / per_s, sum(os.times()[:4])


def others_fraction(before: tuple[float, float, float]) -> float:
    """Returns the fraction of the CPU that other programs used since `before`."""
    total_s, busy_s, own_s = (
        now - then for now, then in zip(processors(), before, strict=True)
    )
    return max(busy_s - own_s, 0.0) / max(total_s, 1e-9)


def lines(facts: dict[str, Any]) -> list[str]:
    """Returns the lines to print of what `suite.measure` returned."""
    length = facts["config"]["model"]["max_length"]
    torch, host = facts["pytorch"], facts["host"]
    rows = []
    for row in facts["variants"]:
        joules, mfu = row["joules_per_million_tokens"], row["mfu"]
        cells = [
            f"{row['tokens_per_s']:,.0f}",
            "-" if mfu is None else f"{mfu:.1%}",
            _bytes(row["memory_bytes"]) + " *" * (row["memory_from"] == "compiler"),
            f"{row['compile_s']:.1f} s",
            "not measured" if joules is None else f"{joules:.1f}",
        ]
        rows.append((f"{row['attention']}, {row['micro_batch']} x {length}", cells))
    if torch:
        memory = torch["memory_bytes"]
        cells = [f"{torch['tokens_per_s']:,.0f}", "", memory and _bytes(memory) or ""]
        rows.append((f"PyTorch, {torch['micro_batch']} x {length}", cells))
    if host:
        rows.append(("reading batches", [f"{host['read_tokens_per_s']:,.0f}"]))
        name = f"the loop alone, {host['loop_micro_batch']} x {length}"
        rows.append((name, [f"{host['loop_tokens_per_s']:,.0f}"]))
    width = max(len(name) for name, _ in rows)
    return [
        *(
            f"{attention}: {check['steps']} steps on one batch took the loss from "
            f"{check['first_loss']:.3f} to {check['last_loss']:.3f}; another batch: "
            f"{check['loss_in_dtype']:.4f} in {check['dtype']}, "
            f"{check['loss_in_float32']:.4f} in float32"
            for attention, check in facts["correctness"].items()
        ),
        "",
        *(
            f"{name:{width}}" + "".join(f"{cell:>14}" for cell in cells)
            for name, cells in [("", COLUMNS), *rows]
        ),
        "",
        *_notes(facts),
    ]


def _notes(facts: dict[str, Any]) -> list[str]:
    around, torch, trials = facts["environment"], facts["pytorch"], facts["trials"]
    found = []
    if torch:
        how = "torch.compile" if torch["compiled"] else "eager"
        found.append(
            f"speed over PyTorch's ({how}; {torch['attention']}, micro-batch "
            f"{torch['micro_batch']}): {_ratio(torch['ratio'])}; one batch, the same "
            f"weights: loss {torch['our_loss']:.6f} and {torch['loss']:.6f}"
        )
    if trials:
        found.append(
            f"time of {trials['trials']} fine-tuning trials in one program over one "
            f"after the other: {_ratio(trials['ratio'])}"
        )
    found += [f"left out: {what}: {why}" for what, why in facts["left_out"]]
    if any(row["memory_from"] == "compiler" for row in facts["variants"]):
        found.append("* the compiler's plan; the device's own peak is not known")
    if facts["host"]:
        found.append(
            "reading, the loop alone: the host, around a step that does nothing; far "
            "above the step's own speed it costs nothing"
        )
    if around["peak_tflops"]:
        found.append(
            f"MFU: the fraction of {around['peak_tflops']:g} TFLOP/s, the dense 16-bit "
            f"peak of {around['card']}"
        )
    for row in facts["variants"]:
        if reasons := (row["gpu"] or {}).get("throttle_reasons"):
            found.append(
                f"{row['attention']}, micro-batch {row['micro_batch']}: the card was "
                f"slowed down: {', '.join(reasons)}"
            )
    if others := (around["gpu"] or {}).get("other_processes"):
        found.append(f"{others} other processes compute on the card")
    if around["backend"] == "cpu" and around["others_share"] > BUSY:
        found.append(
            f"other programs used {around['others_share']:.0%} of the processors: "
            "speeds are too low, and ratios may mislead"
        )
    return found


def _bytes(value: int) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _ratio(ratio: dict[str, float]) -> str:
    text = f"{ratio['min']:.2f} to {ratio['max']:.2f}, {ratio['rounds']} rounds"
    if ratio["max"] > STEADY * ratio["min"]:
        return f"unstable, {text}"
    return f"{ratio['median']:.2f} ({text})"

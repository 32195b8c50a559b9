"""The table of scripts/check_gpu.py: the results on a card, as Markdown."""

from collections.abc import Mapping
from typing import Any

from cramjax.page import Table, to_markdown

Facts = dict[str, Any]


def table(found: Mapping[str, Facts], titles: Mapping[str, str]) -> str:
    """Returns the results of all parts; `titles` also has those that were not run."""
    rows = []
    for name, result in found.items():
        state = "passed" if result["passed"] else f"**failed**: {result['why']}"
        facts = SUMMARIES[name](result["facts"]) if result["facts"] else []
        title, took = f"{name}: {result['title']}", f"{result['seconds']:.0f} s"
        cells = (title, state, took, "; ".join(facts))
        rows.append([cell.replace("\n", " ") for cell in cells])
    lines = [to_markdown([Table(["part", "", "took", "found"], rows)])]
    missing = [
        f"{name} ({title})" for name, title in titles.items() if name not in found
    ]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _show_a(facts: Facts) -> list[str]:
    found, gpu, tests = [], facts.get("gpu"), facts.get("tests")
    if "device" in facts:
        versions = facts["packages"]
        found = [
            f"{facts['device']}, {facts['card'] or 'not in device/cards.py'}",
            f"jax {versions['jax']}, jaxlib {versions['jaxlib']}, "
            f"cuDNN {facts['cudnn'] or 'none'}",
        ]
    if gpu:
        found.append(f"driver {gpu['driver']}, limit {gpu['power_limit_w']} W")
    if facts.get("memory_limit_bytes"):
        found.append(f"programs may take {facts['memory_limit_bytes'] / 1e9:.1f} GB")
    if tests:
        found.append(f"tests: {tests['passed']} passed, {len(tests['failed'])} failed")
        found += [f"skipped {n}: {why}" for n, why in tests["skipped"].items()]
    return found


def _show_b(facts: Facts) -> list[str]:
    mfu, ratio = facts["mfu"], facts["ratio_to_pytorch"]
    why = dict(facts["left_out"]).get("PyTorch")
    best = max(facts["variants"], key=lambda row: row["tokens_per_s"])
    return [
        f"{facts['tokens_per_s']:,.0f} tokens/s"
        + (f", MFU {mfu:.1%}" if mfu else "")
        + f" ({best['attention']}, micro-batch {best['micro_batch']})",
        f"{ratio:.2f} times PyTorch" if ratio else f"PyTorch: left out, {why}",
    ]


def _show_c(facts: Facts) -> list[str]:
    return [f"factor {facts['factor']:.3f} for {facts['card']}"] + [
        f"{n}: {row['measured_tokens_per_s']:,.0f} tokens/s measured, "
        f"{row['estimated_tokens_per_s']:,.0f} estimated"
        for n, row in facts["micro_batches"].items()
    ]


def _show_d(facts: Facts) -> list[str]:
    return [f"{row}: {', '.join(_show_run(summary))}" for row, summary in facts.items()]


def _show_run(summary: Facts) -> list[str]:
    mfu, kwh = summary["mfu"], summary["energy_kwh"]
    found = [
        f"{summary['tokens']:.3g} tokens in {summary['elapsed_s']:.0f} s",
        f"{summary['tokens_per_s']:,.0f} tokens/s"
        + (f", MFU {mfu:.1%}" if mfu else ""),
        f"held-out loss {summary['held_out_loss']:.3f} (unigram entropy "
        f"{summary['unigram_entropy']:.3f})",
        f"first step after {summary['first_step_s']:.1f} s",
    ]
    if kwh is not None:
        found.append(f"{kwh:.3f} kWh")
    return found + [f"{task} {score:.1f}" for task, score in summary["scores"].items()]


SUMMARIES = {"a": _show_a, "b": _show_b, "c": _show_c, "d": _show_d}

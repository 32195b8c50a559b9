"""The benchmark's results as a table."""

from typing import Any

COLUMNS = ("tokens/s", "MFU", "memory", "compile", "J per Mtoken")
BUSY = 0.1  # share of the processors from which on the table says that others work
STEADY = 1.5  # highest over lowest ratio up to which a median is one to quote


def lines(facts: dict[str, Any]) -> list[str]:
    """Returns the lines of a table of what `suite.measure` returned."""
    length = facts["config"]["model"]["max_length"]
    rows = [_variant(row, length) for row in facts["variants"]]
    rows += _beside(facts["pytorch"], length)
    if host := facts["host"]:
        rows.append(("reading batches", [_count(host["read_tokens_per_s"])]))
        name = f"the loop alone, {host['loop_micro_batch']} x {length}"
        rows.append((name, [_count(host["loop_tokens_per_s"])]))
    width = max(len(name) for name, _ in rows)
    table = [f"{'':{width}}" + "".join(f"{title:>14}" for title in COLUMNS)]
    for name, cells in rows:
        table.append(f"{name:{width}}" + "".join(f"{cell:>14}" for cell in cells))
    return [*_checks(facts), "", *table, "", *_ratios(facts), *_around(facts)]


def _variant(row: dict[str, Any], length: int) -> tuple[str, list[str]]:
    joules = row["joules_per_million_tokens"]
    return (
        f"{row['attention']}, {row['micro_batch']} x {length}",
        [
            _count(row["tokens_per_s"]),
            "-" if row["mfu"] is None else f"{row['mfu']:.1%}",
            _bytes(row["memory_bytes"]) + " *" * (row["memory_from"] == "compiler"),
            f"{row['compile_s']:.1f} s",
            "not measured" if joules is None else f"{joules:.1f}",
        ],
    )


def _beside(torch: dict[str, Any] | None, length: int) -> list[tuple[str, list[str]]]:
    if not torch or "ratio" not in torch:
        return []
    name = f"PyTorch, {torch['micro_batch']} x {length}"
    memory = torch["memory_bytes"]
    return [
        (name, [_count(torch["tokens_per_s"]), "", _bytes(memory) if memory else ""])
    ]


def _checks(facts: dict[str, Any]) -> list[str]:
    found = []
    for attention, check in facts["correctness"].items():
        found.append(
            f"{attention}: {check['steps']} steps on one batch took the loss from "
            f"{check['first_loss']:.3f} to {check['last_loss']:.3f}; another batch: "
            f"{check['loss_in_dtype']:.4f} in {check['dtype']}, "
            f"{check['loss_in_float32']:.4f} in float32"
        )
    return found


def _ratios(facts: dict[str, Any]) -> list[str]:
    found, torch, trials = [], facts["pytorch"], facts["trials"]
    if torch and "ratio" in torch:
        ours = f"{torch['attention']}, micro-batch {torch['micro_batch']}"
        how = "torch.compile" if torch["compiled"] else "eager"
        found.append(
            f"speed over PyTorch's ({how}; {ours}): {_ratio(torch['ratio'])}; one "
            f"batch, the same weights: loss {torch['our_loss']:.6f} and "
            f"{torch['loss']:.6f}"
        )
        if more := torch["processor_s_per_step"]:
            found.append(
                f"processor time of a step: {more['ours']:.3g} s, of PyTorch's "
                f"{more['pytorch']:.3g} s"
            )
        if more := torch["accumulating"]:
            found.append(
                f"the same with {more['micro_batches']} micro-batches in an update: "
                f"{_ratio(more['ratio'])}"
            )
    elif torch:
        found.append(f"PyTorch: skipped, {torch['skipped']}")
    if trials:
        found.append(
            f"time of {trials['trials']} fine-tuning trials in one program over one "
            f"after the other: {_ratio(trials['ratio'])}"
        )
    return found


def _around(facts: dict[str, Any]) -> list[str]:
    around = facts["environment"]
    found = [f"left out: {what}: {why}" for what, why in facts["left_out"]]
    if any(row["memory_from"] == "compiler" for row in facts["variants"]):
        found.append("* the compiler's plan; the device's own peak is not known")
    if facts["host"]:
        found.append(
            "reading, the loop alone: the host, around a step that does nothing; far "
            "above the step's own speed it costs nothing"
        )
    if around["peak_tflops"]:
        found.append(
            f"MFU: share of {around['peak_tflops']:g} TFLOP/s, the dense 16-bit peak "
            f"of {around['card']}"
        )
    for row in facts["variants"]:
        if reasons := (row["gpu"] or {}).get("throttle_reasons"):
            found.append(
                f"{row['attention']}, micro-batch {row['micro_batch']}: the card was "
                f"slowed down: {', '.join(reasons)}"
            )
    gpu = around["gpu"] or {}
    if gpu.get("other_processes"):
        found.append(f"{gpu['other_processes']} other processes compute on the card")
    if around["backend"] == "cpu" and (around["others_share"] or 0) > BUSY:
        found.append(
            f"other programs used {around['others_share']:.0%} of the processors: "
            "speeds are too low, and ratios may mislead"
        )
    return found


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bytes(value: int) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _ratio(ratio: dict[str, float]) -> str:
    text = f"{ratio['min']:.2f} to {ratio['max']:.2f}, {ratio['rounds']} rounds"
    if ratio["max"] > STEADY * ratio["min"]:
        return f"unsteady, {text}"
    return f"{ratio['median']:.2f} ({text})"

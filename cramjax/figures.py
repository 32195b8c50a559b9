"""Figures of a run, from its metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cramjax.config import Config
from cramjax.page import Block, Figure, Fold
from cramjax.training.loop import RESUMED, ROLLED_BACK

WIDTH = 5.5  # inches: letters can be read on a phone
MAX_POINTS = 500  # of a line; each is a mean of consecutive measurements
# {key of a measurement: (label, what it is multiplied by)}, see `panels`.
SCHEDULE = {"learning_rate": ("learning rate", 1), "batch_size": ("batch size", 1)}
DEVICE = {
    "tokens_per_s": ("tokens/s", 1),
    "mfu": ("MFU (%)", 100),
    "not_training": ("not training (%)", 100),
    "grad_norm": ("gradient norm", 1),
    "peak_memory_bytes": ("peak memory (GB)", 1e-9),
    "energy_kwh": ("energy (kWh)", 1),
}
Events = Sequence[Mapping[str, Any]]  # what `training.log.read` returns


def curve(events: Events, *keys: str) -> list[np.ndarray]:
    """Returns an array for each key, of the lines that have a number for all keys.

    Neighbours are averaged if there are more than `MAX_POINTS`.
    """
    lines = [line for line in events if "event" not in line]
    found = [
        values for x in lines if None not in (values := [x.get(key) for key in keys])
    ]
    parts = np.array_split(np.array(found, float).reshape(-1, len(keys)), MAX_POINTS)
    means = [part.mean(axis=0) for part in parts if len(part)]
    return list(np.array(means).reshape(-1, len(keys)).T)


def empty(height: float = 3.3) -> Any:
    """Returns a figure of this height, in inches."""
    import matplotlib.figure  # slow to import, and only needed here

    return matplotlib.figure.Figure(figsize=(WIDTH, height), layout="constrained")


def blocks(config: Config, events: Events, summary: Mapping[str, Any]) -> list[Block]:
    """Returns the figures, and what their readers ask first."""
    visible, gap = 1 - config.objective.mask_share, ""
    if visible:
        gap = (
            f" In training, {visible:.0%} of the tokens to predict are visible or "
            "replaced by others; in the held-out loss all are hidden, so it is higher "
            "from the beginning."
        )
    device = Figure("device", panels(config, events, DEVICE))
    note = (
        "Speed and MFU are over all seconds between two measurements; time that was "
        "not spent on training is compilation, checkpoints or validation. The gradient "
        "norm is that before clipping."
    )
    return [
        Figure("loss", loss(config, events, summary)),
        "The loss while training. With more tokens masked the task is harder: compare "
        "the curves only if both are masked alike. A small model may stay at the "
        "dashed line, where it knows how frequent each token is, until it finds out "
        f"how to use the neighbouring tokens.{gap}",
        Figure("schedule", panels(config, events, SCHEDULE)),
        "Learning rate and batch size (sequences per update) are functions of the "
        "budget already spent.",
        Fold("Speed, pauses and gradient norm", [device, note]),
    ]


def loss(config: Config, events: Events, summary: Mapping[str, Any]) -> Any:
    """Returns training and held-out loss over tokens."""
    figure = empty()
    axes = figure.subplots()
    tokens_N, loss_N = curve(events, "tokens", "loss")
    rates = config.objective.mask_rate, config.objective.final_mask_rate
    masked = " to ".join(f"{rate:.0%}" for rate in rates if rate)
    axes.plot(tokens_N / 1e6, loss_N, label=f"training, {masked} masked")
    scored = [line for line in events if line.get("event") == "validation"]
    last = {"tokens": summary["tokens"], "loss": summary["held_out_loss"]}
    axes.plot(
        [line["tokens"] / 1e6 for line in (*scored, last)],
        [line["loss"] for line in (*scored, last)],
        "o-",
        label=f"held out, {config.validation.mask_rate:.0%} masked, at the end: "
        f"{last['loss']:.2f}",
    )
    axes.axhline(
        summary["unigram_entropy"],
        color="gray",
        linestyle="--",
        label=f"token frequencies alone: {summary['unigram_entropy']:.2f}",
    )
    axes.set(xlabel="million tokens", ylabel="masked-LM loss (nats)")
    _mark(axes, config, events, "tokens", 1e-6)
    axes.legend(frameon=False)
    return figure


def panels(
    config: Config, events: Events, wanted: Mapping[str, tuple[str, float]]
) -> Any:
    """Returns what is `wanted` over the budget: a panel for each that was measured."""
    known = [key for key in wanted if any(x.get(key) is not None for x in events)]
    known = known or list(wanted)  # of a run without any measurements
    figure = empty(1.3 * len(known) + 0.4)
    rows = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
    for key, axes in zip(known, rows, strict=True):
        progress_N, value_N = curve(events, "progress", key)
        label, scale = wanted[key]
        axes.plot(100 * progress_N, scale * value_N)
        axes.set(ylabel=label, xlim=(0, 100))
        axes.set_ylim(bottom=0)
        _mark(axes, config, events, "progress", 100)
    rows[-1].set(xlabel="budget used (%)")
    return figure


def _mark(axes: Any, config: Config, events: Events, key: str, scale: float) -> None:
    """Marks stages of the curriculum, interruptions, and skipped micro-batches.

    The x-axis shows the events' `key` times `scale`.
    """
    axes.spines[["top", "right"]].set_visible(False)
    lines = [line for line in events if "progress" in line]
    if not lines:
        return

    def x_at(value: float, of: str) -> float:
        known = [0, *(line[of] for line in lines)]
        return float(np.interp(value, known, [0, *(scale * x[key] for x in lines)]))

    stages = config.curriculum
    # The first stage also holds before its start.
    for start, length in zip((0.0, *stages.starts[1:]), stages.lengths, strict=False):
        x = x_at(start, "progress")
        axes.axvline(x, color="tab:green", linewidth=0.8, alpha=0.6)
        axes.annotate(
            f"length {length}",
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -2),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize="x-small",
        )
    for event, name, color in (
        (RESUMED, "resumed", "gray"),
        (ROLLED_BACK, "stepped back", "tab:red"),
    ):
        for line in events:
            if line.get("event") == event:
                x = x_at(line["step"], "step")
                axes.axvline(x, color=color, linestyle=":", linewidth=1, label=name)
                name = None  # one entry in the legend
    skipped = [0, *(line.get("skipped", 0) for line in lines)]
    x_S = [scale * lines[i][key] for i in np.flatnonzero(np.diff(skipped) > 0)]
    if x_S:
        zeros_S, heights = np.zeros(len(x_S)), axes.get_xaxis_transform()
        style = {"color": "tab:red", "transform": heights, "clip_on": False}
        axes.plot(x_S, zeros_S, "|", label="micro-batches skipped", **style)

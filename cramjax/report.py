"""report.md and its figures, from what a run has written."""

import platform
from pathlib import Path
from typing import Any

import flax
import jax
import matplotlib
import optax
from matplotlib.figure import Figure

from cramjax.glue import tables
from cramjax.glue.tables import table
from cramjax.schema import Config
from cramjax.training import metrics_log
from cramjax.training.budget import CHARGED, FREE
from cramjax.training.pretrain import METRICS

REPORT = "report.md"


def write(
    config: Config,
    manifest: dict[str, Any],
    summary: dict[str, Any],
    results: dict[str, Any],
    workdir: Path,
) -> Path:
    """Writes report.md, loss.png and schedule.png; returns the report's path."""
    events = metrics_log.read(workdir / METRICS)
    lines = [line for line in events if "event" not in line]
    scored = [line for line in events if line.get("event") == "validation"]
    _loss_figure(lines, scored, summary).savefig(workdir / "loss.png", dpi=120)
    _schedule_figure(lines).savefig(workdir / "schedule.png", dpi=120)
    sections = [
        f"# {workdir.name}",
        _results_section(config, results),
        _pretraining_section(config, manifest, summary),
        "![loss](loss.png)\n\n![schedule](schedule.png)",
        _environment_section(summary),
    ]
    path = workdir / REPORT
    path.write_text("\n\n".join(section for section in sections if section) + "\n")
    return path


def _results_section(config: Config, results: dict[str, Any]) -> str:
    if not results:
        return ""
    names = {
        "pretrained": "pretrained",
        "random": "not pretrained",
        "ema": "pretrained, moving average",
        "lawa": "pretrained, latest weights' average",
    }
    header = ["task", "metric", "training rows"]
    header += [names[start] for start in config.glue.starts]
    header += ["bag of words", "majority class"]
    rows = []
    for result in results.values():
        row = [result["title"], result["metric"], tables.rows_used(result, "train")]
        for start in config.glue.starts:
            best = result["starts"].get(start)
            row.append(
                f"**{best['median']:.1f}** ({best['min']:.1f} to {best['max']:.1f}) "
                f"at {best['best_rate']:g}"
                if best
                else "-"
            )
        rows.append([*row, *tables.baseline_cells(result)])
    how = tables.how_chosen(config.glue)
    text = (
        "## Fine-tuning\n\n"
        f"Dev sets, in percent: median (lowest to highest) of {config.glue.trials} "
        f"trials, {config.glue.epochs} epochs. {how}\n\n" + table(header, rows)
    )
    below = tables.conditions(config)
    sections = [
        text,
        below,
        tables.bag_of_words(results, config.glue),
        tables.averages_table(results, config.glue, below),
        *tables.notes(results, config.glue),
    ]
    return "\n\n".join(section for section in sections if section)


def _pretraining_section(
    config: Config, manifest: dict[str, Any], summary: dict[str, Any]
) -> str:
    entropy, loss = summary["unigram_entropy"], summary["held_out_loss"]
    train_loss = summary["train_loss"]
    documents = manifest["documents"]
    budget = getattr(config.budget, config.budget.kind)
    rows = [
        ["held-out loss", f"{loss:.3f} nats per masked token"],
        *(
            [f"held-out loss, {name} weights", f"{value:.3f} nats"]
            for name, value in summary["averages"].items()
        ),
        ["unigram entropy of the corpus", f"{entropy:.3f} nats per token"],
        ["difference", f"{entropy - loss:.3f} nats"],
        ["held-out accuracy", f"{summary['held_out_accuracy']:.1%}"],
        ["held-out bits per byte", f"{summary['bits_per_byte']:.3f}"],
        ["last training loss", "-" if train_loss is None else f"{train_loss:.3f} nats"],
        ["budget", f"{budget:,.12g} {config.budget.kind}"],
        ["tokens", f"{summary['tokens']:,} ({summary['passes']:.2f} passes)"],
        [
            "updates",
            f"{summary['updates']:,} of {summary['micro_steps']:,} micro-steps",
        ],
        ["skipped micro-batches", f"{summary['skipped']:,}"],
        [
            "time in the budget",
            f"{summary['elapsed_s']:.0f} s: {_seconds(summary, CHARGED)}",
        ],
        ["outside the budget", _seconds(summary, FREE)],
        ["speed", f"{summary['tokens_per_s']:,.0f} tokens/s"],
        *_device_rows(summary),
        ["model FLOPs", f"{summary['model_flops']:.3g}"],
        ["parameters", f"{summary['parameters']:,}"],
        [
            "corpus",
            f"{documents['train']:,} documents, {manifest['tokens']['train']:,} "
            f"tokens; {documents['held_out']:,} documents held out, "
            f"{documents['filtered']:,} dropped",
        ],
        ["licence of the text", config.data.licence or "not noted"],
    ]
    return (
        "## Pretraining\n\n"
        f"The held-out loss is over {config.validation.mask_rate:.0%} of the positions "
        "of documents never trained on. The budget is of the training loop: "
        "compilation, data loading, checkpoints and work lost to a crash are inside, "
        "building the corpus, validation and fine-tuning are outside.\n\n"
        + table(["what", "value"], rows)
    )


def _device_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Returns what is known of start-up and device."""
    rows = {
        "first_step_s": (
            "from the last session's start to its first step, without the corpus",
            lambda seconds: f"{seconds:.1f} s",
        ),
        "mfu": (
            "MFU, of the card's dense 16-bit peak over the time in the budget",
            lambda share: f"{share:.1%}",
        ),
        "peak_memory_bytes": (
            "memory of the device, at most, in the last session",
            lambda size: f"{size / 1e9:.1f} GB",
        ),
        "energy_kwh": (
            "energy of the card, validation included",
            lambda energy: f"{energy:.3g} kWh",
        ),
    }
    return [
        [title, show(summary[key])]
        for key, (title, show) in rows.items()
        if summary[key] is not None
    ]


def _seconds(summary: dict[str, Any], kinds: tuple[str, ...]) -> str:
    return ", ".join(f"{kind} {summary['seconds'][kind]:.0f} s" for kind in kinds)


def _environment_section(summary: dict[str, Any]) -> str:
    versions = [
        f"Python {platform.python_version()}",
        *(f"{m.__name__} {m.__version__}" for m in (jax, flax, optax)),
    ]
    return (
        f"Pretrained on {summary['device']} with cramjax {summary['code']}. "
        f"{', '.join(versions)}."
    )


def _figure(width: float, height: float) -> Figure:
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    return Figure(figsize=(width, height), layout="constrained")


def _loss_figure(
    lines: list[dict[str, Any]],
    scored: list[dict[str, Any]],
    summary: dict[str, Any],
) -> Figure:
    figure = _figure(7, 4)
    axes = figure.subplots()
    measured = [line for line in lines if line["loss"] is not None]
    axes.plot(
        [line["tokens"] / 1e6 for line in measured],
        [line["loss"] for line in measured],
        label="training",
    )
    axes.plot(
        [line["tokens"] / 1e6 for line in scored] + [summary["tokens"] / 1e6],
        [line["loss"] for line in scored] + [summary["held_out_loss"]],
        "o-",
        label=f"held out, at the end: {summary['held_out_loss']:.2f}",
    )
    axes.axhline(
        summary["unigram_entropy"],
        color="gray",
        linestyle="--",
        label=f"unigram entropy: {summary['unigram_entropy']:.2f}",
    )
    axes.set(xlabel="million tokens", ylabel="masked-LM loss (nats)")
    axes.legend(frameon=False)
    return figure


def _schedule_figure(lines: list[dict[str, Any]]) -> Figure:
    figure = _figure(7, 4)
    rate_axes, batch_axes = figure.subplots(2, 1, sharex=True)
    lines = [line for line in lines if "learning_rate" in line]
    progress = [100 * line["progress"] for line in lines]
    rate_axes.plot(progress, [line["learning_rate"] for line in lines])
    rate_axes.set(ylabel="learning rate")
    batch_axes.step(progress, [line["batch_size"] for line in lines], where="post")
    batch_axes.set(
        ylabel="sequences per update", xlabel="budget used (%)", xlim=(0, 100)
    )
    batch_axes.set_ylim(bottom=0)
    return figure

"""compare.html: what differs between finished runs, in settings and in results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cramjax import config as config_module
from cramjax import figures, files, page, report, run, word_order
from cramjax.config import OPERATIONAL_KEYS, Config, flatten, to_dict
from cramjax.errors import UserError
from cramjax.glue import evaluate, scores, tables
from cramjax.page import Block, Figure, Heading, Items, Table
from cramjax.training import log as metrics_log
from cramjax.training.pretrain import METRICS, SUMMARY

HINT = "pass the workdir of a finished run"


class Run(NamedTuple):
    """What a workdir holds."""

    workdir: Path
    config: Config
    manifest: dict[str, Any]
    summary: dict[str, Any]
    results: dict[str, Any]


def read(workdir: Path) -> Run:
    """Reads a finished run.

    Raises:
      UserError: a file is missing or damaged.
    """
    summary = files.read_json(workdir / SUMMARY, HINT)
    manifest = files.read_json(workdir / run.CORPUS, run.FROM_THE_CORPUS)
    recorded = config_module.read_recorded(workdir / run.CONFIG, HINT)
    results = evaluate.read_results(workdir / evaluate.RESULTS)
    return Run(workdir, config_module.from_dict(recorded), manifest, summary, results)


def write(workdirs: Sequence[Path], path: Path) -> None:
    """Writes a page about finished runs; differences are to the first of them.

    Raises:
      UserError: a run is not finished, or of a version that recorded less.
    """
    found = [read(workdir) for workdir in workdirs]
    for each in found:
        if missing := sorted(report.NEEDED - each.summary.keys()):
            raise UserError(
                f"{each.workdir / SUMMARY} is of an earlier version, without "
                f"{', '.join(missing)}: leave {each.workdir} out"
            )
    names = [workdir.name for workdir in workdirs]
    if len(set(names)) < len(names):
        names = [str(workdir) for workdir in workdirs]
    if len(runs := dict(zip(names, found, strict=True))) < len(names):
        raise UserError(f"a workdir is given twice: {', '.join(names)}")
    title = f"Comparison of {len(runs)} runs"
    blocks = [
        Heading(title, 1),
        *_results(runs),
        *_settings(runs),
        *_losses(runs),
        *_scores(runs),
    ]
    files.write_text(path, page.to_html(title, blocks))


def _results(runs: dict[str, Run]) -> list[Block]:
    rows = []
    for name, (_, _, _, summary, _) in runs.items():
        order = summary.get("word_order")
        ordered = "-"
        if order:
            error = word_order.margin(order["model"], order["pairs"])
            ordered = f"{order['model']:.1f} % (+-{error:.1f})"
        rows.append(
            [
                f"**{name}**",
                f"{summary['held_out_loss']:.3f}",
                f"{summary['bits_per_byte']:.3f}",
                ordered,
                f"{summary['parameters']:,}",
                f"{summary['tokens']:,}",
                f"{summary['model_flops']:.3g}",
                f"{summary['elapsed_s'] / 3600:.3g}",
                f"{summary['skipped']:,}",
                summary["device"],
            ]
        )
    header = (
        "run,held-out loss (nats),bits per byte,word order,parameters,tokens,"
        "model FLOPs,hours,micro-batches skipped,device"
    )
    notes = "Losses and bits per byte: lower is better; word order: higher."
    if len({each.manifest["tokenizer_crc32"] for each in runs.values()}) > 1:
        notes += (
            " **The tokenizers differ**: held-out losses and their curves cannot be "
            "compared, bits per byte can if the held-out text is the same."
        )
    if len({each.manifest["checksum"] for each in runs.values()}) > 1:
        notes += " **The corpora differ**, so the held-out texts may differ, too."
    return [Table(header.split(","), rows), notes]


def _settings(runs: dict[str, Run]) -> list[Block]:
    """Returns the keys that have different values, without those that do not matter."""
    flat = [flatten(to_dict(each.config)) for each in runs.values()]
    rows = [
        [key, *(report.shown(values[key]) for values in flat)]
        for key in flat[0]
        if key not in OPERATIONAL_KEYS
        and any(values[key] != flat[0][key] for values in flat)
    ]
    table = Table(["key", *runs], rows) if rows else "All settings are the same."
    return [Heading("Settings that differ"), table]


def _losses(runs: dict[str, Run]) -> list[Block]:
    """Returns losses over tokens, FLOPs and hours."""
    blocks: list[Block] = [
        Heading("Losses"),
        "Lines are training losses, dots held-out losses at the end. The training "
        "loss depends on the masking, the held-out loss does not. FLOPs are the "
        "model's, without the optimizer's, evenly spread over the tokens; hours are "
        "those of training that a budget of hours counts.",
    ]
    curves = {
        name: figures.curve(
            metrics_log.read(each.workdir / METRICS), "tokens", "elapsed_s", "loss"
        )
        for name, each in runs.items()
    }
    for label in ("million tokens", "model FLOPs", "hours"):
        figure = figures.empty()
        axes = figure.subplots()
        for number, (name, (tokens_N, elapsed_s_N, loss_N)) in enumerate(
            curves.items()
        ):
            summary, color = runs[name].summary, f"C{number % 10}"
            flops_per_token = summary["model_flops"] / summary["tokens"]
            x_N, end = {
                "million tokens": (tokens_N / 1e6, summary["tokens"] / 1e6),
                "model FLOPs": (tokens_N * flops_per_token, summary["model_flops"]),
                "hours": (elapsed_s_N / 3600, summary["elapsed_s"] / 3600),
            }[label]
            axes.plot(x_N, loss_N, color=color, linewidth=1, label=name)
            axes.plot([end], [summary["held_out_loss"]], "o", color=color)
        axes.set(xlabel=label, ylabel="masked-LM loss (nats)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
        blocks.append(Figure(f"losses over {label}", figure))
    return blocks


def _scores(runs: dict[str, Run]) -> list[Block]:
    """Returns the scores on the sets that all runs have, and paired differences."""
    first, *others = runs.values()
    rows = []
    for name, entry in first.results.items():
        start = first.config.glue.starts[0]
        entries = [each.results.get(name, {"starts": {}}) for each in runs.values()]
        if not all(start in each["starts"] for each in entries):
            continue
        row = [entry["title"], entry["metric"]]
        for each in entries:
            best = each["starts"][start]
            row.append(f"{best['median']:.1f} ({best['min']:.1f} to {best['max']:.1f})")
        sides = [
            scores.load_predictions(
                each.workdir, name, start, found["starts"][start]["best_rate"]
            )
            for each, found in zip(runs.values(), entries, strict=True)
        ]
        labels_N = sides[0]["labels_N"]
        for side in sides[1:]:
            cell = "other rows"
            if np.array_equal(side["labels_N"], labels_N):
                predicted = (side["predictions_TxN"], sides[0]["predictions_TxN"])
                gap = scores.interval(entry["metric"], labels_N, *predicted)
                cell = tables.INTERVAL.format(**gap)
            row.append(cell)
        rows.append(row)
    if not rows:
        return []
    base, *rest = runs
    header = ["task", "metric", *runs, *(f"{name} - {base}" for name in rest)]
    return [
        Heading("Fine-tuning"),
        "Scores on dev sets, in percent, higher is better: the median (lowest to "
        "highest) of the trials at each run's best learning rate.",
        Table(header, rows),
        tables.how_compared(),
        Items(
            [
                f"**{name}**: {tables.conditions(each.config)}"
                for name, each in runs.items()
            ]
        ),
    ]

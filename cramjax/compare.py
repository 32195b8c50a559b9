"""compare.html: what differs between finished runs, in settings and in results."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cramjax import config as config_module
from cramjax import figures, files, page, report, run, word_order
from cramjax.config import OPERATIONAL_KEYS, flatten, to_dict
from cramjax.data.corpus import CORPUS, FROM_THE_CORPUS
from cramjax.errors import UserError
from cramjax.glue import evaluate, scores, tables
from cramjax.page import Block, Figure, Heading, Table
from cramjax.report import Run
from cramjax.training import log as metrics_log
from cramjax.training.pretrain import METRICS, SUMMARY


def read(workdir: Path) -> Run:
    """Reads a finished run.

    Raises:
      UserError: a file is missing or damaged.
    """
    hint = "pass the workdir of a finished run"
    summary = files.read_json(workdir / SUMMARY, hint)
    manifest = files.read_json(workdir / CORPUS, FROM_THE_CORPUS)
    values = config_module.read_recorded(workdir / run.CONFIG, hint)
    results = evaluate.read_results(workdir / evaluate.RESULTS)
    return Run(config_module.from_dict(values), manifest, summary, results, workdir)


def write(workdirs: Sequence[Path], path: Path, root: Path | None = None) -> None:
    """Writes a page about finished runs; differences are from the first of them.

    They are named by their folders, below `root` if it is given.

    Raises:
      UserError: a run is not finished, or is of a version that recorded less.
    """
    names = [workdir.name for workdir in workdirs]
    if root or len(set(names)) < len(names):
        paths = [workdir.absolute() for workdir in workdirs]
        root = root.absolute() if root else Path(os.path.commonpath(paths))
        names = [str(path.relative_to(root)) for path in paths]
    runs = {name: read(workdir) for name, workdir in zip(names, workdirs, strict=True)}
    for each in runs.values():
        if missing := sorted(report.NEEDED - each.summary.keys()):
            raise UserError(
                f"{each.workdir / SUMMARY} is of an earlier version, without "
                f"{', '.join(missing)}: leave {each.workdir} out"
            )
    heading = Heading("Comparison of runs", 1)
    blocks = [heading, *_results(runs), *_losses(runs), *_scores(runs)]
    files.write_text(path, page.to_html(heading.text, blocks))


def _results(runs: dict[str, Run]) -> list[Block]:
    """Returns tables of the results of pretraining and of the settings that differ."""
    rows = []
    for name, each in runs.items():
        summary, ordered = each.summary, "-"
        if order := summary.get("word_order"):
            error = word_order.margin(order["model"], order["pairs"])
            ordered = f"{order['model']:.1f} % (+-{error:.1f})"
        losses = f"{summary['held_out_loss']:.3f}", f"{summary['bits_per_byte']:.3f}"
        counts = (f"{summary[key]:,}" for key in ("parameters", "tokens", "skipped"))
        spent = f"{summary['model_flops']:.3g}", f"{summary['elapsed_s'] / 3600:.3g}"
        device = summary["device"]
        rows.append([f"**{name}**", *losses, ordered, *counts, *spent, device])
    header = (
        "run,held-out loss (nats),bits per byte,word order,parameters,tokens,"
        "micro-batches skipped,model FLOPs,hours,device"
    )
    notes = "Losses and bits per byte: lower is better; word order: higher."
    if len({each.manifest["tokenizer_crc32"] for each in runs.values()}) > 1:
        notes += (
            " **The tokenizers differ**: held-out losses and their curves cannot be "
            "compared, bits per byte can if the held-out text is the same."
        )
    if len({files.checksum(each.manifest) for each in runs.values()}) > 1:
        notes += " **The corpora differ**, so the held-out texts may differ, too."
    flat = [flatten(to_dict(each.config)) for each in runs.values()]
    differing = [
        [key, *(report.shown(values[key]) for values in flat)]
        for key in flat[0]
        if key not in OPERATIONAL_KEYS
        and any(values[key] != flat[0][key] for values in flat)
    ]
    settings = Table(["key", *runs], differing) if differing else "None."
    heading = Heading("Settings that differ")
    return [Table(header.split(","), rows), notes, heading, settings]


def _losses(runs: dict[str, Run]) -> list[Block]:
    """Returns losses over tokens, FLOPs and hours."""
    blocks: list[Block] = [
        Heading("Losses"),
        "Lines are training losses, dots held-out losses at the end. The training "
        "loss depends on the masking, the held-out loss does not. FLOPs are the "
        "model's, without the optimizer's, evenly spread over the tokens; hours are "
        "those of training that a budget of hours counts.",
    ]
    for label, of_lines, of_summary, scale in (
        ("million tokens", "tokens", "tokens", 1e6),
        ("model FLOPs", "tokens", "model_flops", 1),
        ("hours", "elapsed_s", "elapsed_s", 3600),
    ):
        figure = figures.empty()
        axes = figure.subplots()
        for number, (name, each) in enumerate(runs.items()):
            events, color = metrics_log.read(each.workdir / METRICS), f"C{number}"
            x_N, loss_N = figures.curve(events, of_lines, "loss")
            end = each.summary[of_summary] / scale
            x_N *= end / each.summary[of_lines]
            axes.plot(x_N, loss_N, color=color, linewidth=1, label=name)
            axes.plot([end], [each.summary["held_out_loss"]], "o", color=color)
        axes.set(xlabel=label, ylabel="masked-LM loss (nats)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
        blocks.append(Figure(f"losses over {label}", figure))
    return blocks


def _scores(runs: dict[str, Run]) -> list[Block]:
    """Returns the scores on the sets that all runs have, and paired differences."""
    (base, first), *others = runs.items()
    start, rows = first.config.glue.starts[0], []
    for name, entry in first.results.items():
        starts = [
            each.results.get(name, {}).get("starts", {}) for each in runs.values()
        ]
        if not all(start in found for found in starts):
            continue
        best = [found[start] for found in starts]
        row = [entry["title"], entry["metric"]]
        row += [f"{x['median']:.1f} ({x['min']:.1f} to {x['max']:.1f})" for x in best]
        baseline, *sides = (
            scores.load_predictions(each.workdir, name, start, x["best_rate"])
            for each, x in zip(runs.values(), best, strict=True)
        )
        labels_N = baseline["labels_N"]
        for side in sides:
            cell = "other rows"
            if np.array_equal(side["labels_N"], labels_N):
                pair = side["predictions_TxN"], baseline["predictions_TxN"]
                gap = scores.interval(entry["metric"], labels_N, *pair)
                cell = tables.INTERVAL.format(**gap)
            row.append(cell)
        rows.append(row)
    if not rows:
        return []
    header = ["task", "metric", *runs, *(f"{name} - {base}" for name, _ in others)]
    tracks = {name: tables.conditions(each.config) for name, each in runs.items()}
    return [
        Heading("Fine-tuning"),
        "Scores on dev sets, in percent, higher is better: the median (lowest to "
        "highest) of the trials at each run's best learning rate.",
        Table(header, rows),
        tables.how_compared(),
        *(f"**{name}**: {track}" for name, track in tracks.items()),
    ]

"""report.md and its figures, from what a run has written."""

from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files, word_order
from cramjax.config import OPERATIONAL_KEYS, Config, flatten, to_dict
from cramjax.glue import evaluate, tables
from cramjax.markdown import table
from cramjax.training import log as metrics_log
from cramjax.training.clock import CHARGED, FREE
from cramjax.training.loop import RESUMED, ROLLED_BACK
from cramjax.training.pretrain import METRICS

REPORT = "report.md"
# Keys of pretrain.json that earlier versions did not write.
NEEDED = {
    "averages",
    "bits_per_byte",
    "code",
    "energy_kwh",
    "first_step_s",
    "held_out_accuracy",
    "mfu",
    "peak_memory_bytes",
    "seconds",
    "skipped",
}
# A loss is clearly below the unigram entropy if it is lower by this fraction. Models
# that have learned little more than word frequencies long stay 2 to 4 % below it.
CLEARLY = 0.05


def write(
    config: Config,
    manifest: dict[str, Any],
    summary: dict[str, Any],
    results: dict[str, Any],
    workdir: Path,
) -> Path:
    """Writes report.md, loss.png and schedule.png; returns the report's path."""
    events = metrics_log.read(workdir / METRICS)
    _loss_figure(config, events, summary).savefig(workdir / "loss.png", dpi=120)
    _schedule_figure(config, events).savefig(workdir / "schedule.png", dpi=120)
    sections = [
        f"# {workdir.name}",
        f"A masked language model of {summary['parameters']:,} parameters (BERT-base: "
        f"110 million), pretrained from {config.init_from or 'random weights'} on "
        f"{summary['tokens']:,} tokens:"
        f" {manifest['tokens']['train']:,} tokens of text, read "
        f"{summary['passes']:.1f} times.",
        verdict(config, summary, results),
        _learned_section(config, summary),
        _results_section(config, results, workdir),
        _training_section(config, summary),
        _captions(config),
        _origin_section(config, manifest, summary),
        _settings_section(config),
        _use_section(workdir),
    ]
    path = workdir / REPORT
    path.write_text("\n\n".join(section for section in sections if section) + "\n")
    return path


def verdict(config: Config, summary: dict[str, Any], results: dict[str, Any]) -> str:
    """Returns what the numbers mean, in two or three sentences."""
    ahead = tables.bag_of_words_ahead(results, config.glue)
    titles = next(iter(ahead.values()), [])
    sentences = [_of_pretraining(summary)]
    if titles:
        sentences.append(
            "After fine-tuning, a bag of words, which only counts words, still does as "
            f"well or better on {'; '.join(titles)}."
        )
    return " ".join(sentences)


def _results_section(config: Config, results: dict[str, Any], workdir: Path) -> str:
    if not results:
        return ""
    glue = config.glue
    found = files.read_json(workdir / evaluate.RESULTS, evaluate.DELETE_IT)
    names = {
        "pretrained": "pretrained",
        "random": "random initialization",
        "ema": "pretrained, moving average",
        "lawa": "pretrained, latest weights' average",
    }
    header = ["task", "metric", "training rows"]
    header += [names[start] for start in glue.starts]
    header += ["bag of words", "majority class"]
    rows = []
    for name, result in results.items():
        row = [result["title"], result["metric"], tables.rows_used(result, "train")]
        for start in glue.starts:
            best = result["starts"].get(start)
            row.append(
                f"{best['median']:.1f} ({best['min']:.1f} to {best['max']:.1f}) "
                f"at {best['best_rate']:g}"
                f"{tables.diverged_mark(results, start, [name])}"
                if best
                else "-"
            )
        rows.append([*row, *tables.baseline_cells(result)])
    below = tables.conditions(config)
    sections = [
        "## Fine-tuning",
        f"Scores on dev sets, in percent (correlations times 100), higher is better: "
        f"the median (lowest to highest) of {glue.trials} trials of {glue.epochs} "
        f"epochs. {tables.how_chosen(glue)}",
        table(header, rows),
        below,
        tables.bag_of_words(results, glue),
        tables.differences_table(results, found["differences"], below),
        tables.averages_table(results, glue, below),
        *tables.notes(results, glue),
    ]
    return "\n\n".join(section for section in sections if section)


def _learned_section(config: Config, summary: dict[str, Any]) -> str:
    order = summary.get("word_order")
    rows = [
        [
            "held-out loss (lower is better)",
            f"**{summary['held_out_loss']:.3f}** nats per masked token",
            "word frequencies of the training text "
            f"{summary['unigram_entropy']:.3f} (unigram entropy)",
        ],
        *(
            [f"held-out loss, {name} of the weights", f"{value:.3f} nats", ""]
            for name, value in summary["averages"].items()
        ),
        [
            "held-out accuracy (higher is better)",
            f"{summary['held_out_accuracy']:.1%}",
            "",
        ],
        [
            "held-out bits per byte (lower is better)",
            f"{summary['bits_per_byte']:.3f}",
            "masked tokens only",
        ],
    ]
    notes = (
        "All of this is measured on documents that the model never trained on. The "
        f"held-out loss is how surprised it is by a hidden token, with "
        f"{config.validation.mask_rate:.0%} of the tokens hidden; the accuracy is how "
        "often its first guess is right."
    )
    if order:
        error = word_order.margin(order["model"], order["pairs"])
        others = f"bigram model {order['bigram']:.1f} %, chance 50 %"
        score = f"**{order['model']:.1f} %** (+-{error:.1f})"
        rows.insert(0, ["word order (higher is better)", score, others])
        notes += (
            " Word order is how often the model finds a sentence more likely than the "
            f"same sentence with two neighbouring words swapped, in {order['pairs']} "
            "pairs (+-: 95 % interval); each token is masked in turn and their "
            "log-likelihoods are added up. The bigram model only counts which token "
            "follows which in the training text."
        )
    elif "word_order" in summary:
        notes += f" {word_order.line(None).capitalize()}."
    header = ["measured", "this model", "for comparison"]
    return "\n\n".join(["## What pretraining taught", table(header, rows), notes])


def _of_pretraining(summary: dict[str, Any]) -> str:
    """Returns a sentence about the held-out loss and word order."""
    order = summary.get("word_order")
    gap = 1 - summary["held_out_loss"] / summary["unigram_entropy"]
    error = word_order.margin(order["model"], order["pairs"]) if order else 0.0
    knows_order = order and order["model"] - error > 50
    near_chance = "its word order is no better than chance"
    if gap < CLEARLY:
        text = (
            f"**The model is {'no' if gap <= 0 else 'hardly'} better than word "
            "frequencies**: its held-out loss is not clearly below the unigram entropy"
        )
        if knows_order:
            text += ", though it has begun to learn word order"
        elif order:
            text += f", and {near_chance}"
        return f"{text}. It needs more training, more text or another learning rate."
    text = (
        f"The held-out loss is {gap:.0%} below what word frequencies alone would give"
    )
    if not order:
        return f"{text}."
    if not knows_order:
        return (
            f"{text}, but **{near_chance}**: the model has learned which words occur "
            "together, not how they are put together."
        )
    ahead = order["model"] - order["bigram"]
    how = "about as well as" if abs(ahead) < error else "better than"
    if ahead <= -error:
        how = "less well than"
    return f"{text}, and the model tells word order {how} the bigram model."


def _training_section(config: Config, summary: dict[str, Any]) -> str:
    budget = getattr(config.budget, config.budget.kind)
    train_loss = summary["train_loss"]
    updates = f"{summary['updates']:,}, of {summary['micro_steps']:,} micro-batches"
    charged = f"{summary['elapsed_s']:.0f} s: {_seconds(summary, CHARGED)}"
    tokens_per_s = summary["tokens_per_s"]
    gpus = summary.get("devices", 1)  # earlier versions had one
    each = f", {tokens_per_s / gpus:,.0f} on each of {gpus} GPUs" * (gpus > 1)
    rows = [
        ["budget", f"{budget:,.12g} {config.budget.kind}"],
        ["tokens", f"{summary['tokens']:,} ({summary['passes']:.2f} passes)"],
        ["updates", updates],
        ["micro-batches skipped, not finite", f"{summary['skipped']:,}"],
        ["last training loss", "-" if train_loss is None else f"{train_loss:.3f} nats"],
        ["training time", charged],
        ["time that does not count", _seconds(summary, FREE)],
        ["speed", f"{tokens_per_s:,.0f} tokens/s{each}"],
        *_device_rows(summary),
        ["model FLOPs", f"{summary['model_flops']:.3g}"],
    ]
    return (
        "## Training\n\n"
        + table(["", ""], rows)
        + "\n\nCompilation, data loading, checkpoints and work repeated after a crash "
        "count towards the training time, and towards a budget of hours. Building the "
        "corpus, validation and fine-tuning do not."
    )


def _device_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Returns what was measured of start-up and device; None is left out."""
    start = "start-up of the last session, without building the corpus"
    mfu = "MFU, the fraction of the card's dense 16-bit peak, over that time"
    energy = "energy drawn by the card, validation included"
    peak = summary["peak_memory_bytes"]
    rows = [
        (start, summary["first_step_s"], "{:.1f} s"),
        (mfu, summary["mfu"], "{:.1%}"),
        ("peak device memory in the last session", peak and peak / 1e9, "{:.1f} GB"),
        (energy, summary["energy_kwh"], "{:.3g} kWh"),
    ]
    return [[title, text.format(x)] for title, x, text in rows if x is not None]


def _seconds(summary: dict[str, Any], kinds: tuple[str, ...]) -> str:
    spent = {kind: summary["seconds"][kind] for kind in kinds}
    shown = [f"{kind} {s:.0f} s" for kind, s in spent.items() if s >= 0.5]
    return ", ".join(shown) or "0 s"


def _origin_section(
    config: Config, manifest: dict[str, Any], summary: dict[str, Any]
) -> str:
    """Returns the model's shape, text, software, hardware and command."""
    model, documents = config.model, manifest["documents"]
    repeats = f", run {model.repeats} times" if model.repeats > 1 else ""
    versions = summary.get("versions", {})
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    libraries = libraries or (
        "the versions of Python and its libraries were not recorded"
    )
    sources = [
        f"  - {source['source']}: {source['chars'] / 1e6:,.1f} million characters, "
        f"{source['share']:.1%} of the text"
        for source in manifest.get("text", ())
    ]
    return "\n".join(
        [
            "## How it was made\n",
            f"- **Model**: {model.layers} layers{repeats}, width {model.width}, "
            f"{model.heads} heads, {model.ffn} feed-forward width {model.ffn_width}, "
            f"{model.positions} positions, vocabulary {model.vocab_size:,}, sequences "
            f"of {model.max_length} tokens; {summary['parameters']:,} parameters.",
            f"- **Text**: {documents['train']:,} documents "
            f"({manifest['tokens']['train']:,} tokens) to train on, "
            f"{documents['held_out']:,} held out, {documents['filtered']:,} dropped by "
            f"filters. Licence: {config.data.licence or 'not stated'}.",
            *sources,
            f"- **Software at training time**: cramjax {summary['code']}; {libraries}.",
            f"- **Hardware**: {summary['device']}.",
            "- **Command** of the last training session:\n\n"
            f"      {summary.get('command', 'not recorded')}",
        ]
    )


def _settings_section(config: Config) -> str:
    """Returns a table of the keys that differ from the paper's recipe."""
    recipe = flatten(to_dict(Config()))
    rows = [
        [key, _value(value), _value(recipe[key])]
        for key, value in flatten(to_dict(config)).items()
        if value != recipe[key] and key not in OPERATIONAL_KEYS
    ]
    if not rows:
        return "All settings are those of the paper's recipe."
    return (
        "## Settings\n\nThese differ from the recipe of the paper that cramjax follows "
        "(arXiv 2212.14034); 0 often means none or all, see `cramjax/config/`.\n\n"
        + table(["key", "this run", "recipe"], rows)
    )


def _captions(config: Config) -> str:
    """Returns the figures, and what their readers ask first."""
    visible, gap = 1 - config.objective.mask_share, ""
    if visible:
        gap = (
            f" In training, {visible:.0%} of the tokens to predict are visible or "
            "replaced by others; in the held-out loss all are hidden, so it is higher "
            "from the beginning."
        )
    return (
        "![loss](loss.png)\n\nThe loss while training. A small model first learns how "
        "frequent each token is, and stays there until it finds out how to use the "
        f"neighbouring tokens: then its loss drops.{gap}\n\n![schedule](schedule.png)"
        "\n\nLearning rate and batch size are functions of the budget already spent."
    )


def _use_section(workdir: Path) -> str:
    command = f"python scripts/fill_mask.py --checkpoint={workdir}"
    return (
        f'## Using the model\n\n    {command} "it was a <mask> day"\n\n'
        f"In Python, `cramjax.load({str(workdir)!r})` fills masks, compares sentences "
        "and returns vectors; docs/models.md shows how. All fine-tuning trials are in "
        "glue.md."
    )


def _value(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown or "-"


def _empty_figure() -> Any:
    from matplotlib.figure import Figure  # slow to import, and only needed at the end

    return Figure(figsize=(7, 4), layout="constrained")


def _loss_figure(
    config: Config, events: list[dict[str, Any]], summary: dict[str, Any]
) -> Any:
    figure = _empty_figure()
    axes = figure.subplots()
    measured = [x for x in events if "event" not in x and x["loss"] is not None]
    scored = [line for line in events if line.get("event") == "validation"]
    last = {"tokens": summary["tokens"], "loss": summary["held_out_loss"]}
    for lines, style, label in (
        (measured, "-", "training"),
        ([*scored, last], "o-", f"held out, at the end: {last['loss']:.2f}"),
    ):
        tokens_M = [line["tokens"] / 1e6 for line in lines]
        axes.plot(tokens_M, [line["loss"] for line in lines], style, label=label)
    axes.axhline(
        summary["unigram_entropy"],
        color="gray",
        linestyle="--",
        label=f"word frequencies alone: {summary['unigram_entropy']:.2f}",
    )
    axes.set(xlabel="million tokens", ylabel="masked-LM loss (nats)")
    _mark(axes, config, events, "tokens", 1e-6)
    axes.legend(frameon=False)
    return figure


def _schedule_figure(config: Config, events: list[dict[str, Any]]) -> Any:
    figure = _empty_figure()
    rate_axes, batch_axes = figure.subplots(2, 1, sharex=True)
    lines = [line for line in events if "learning_rate" in line]
    progress = [100 * line["progress"] for line in lines]
    rate_axes.plot(progress, [line["learning_rate"] for line in lines])
    rate_axes.set(ylabel="learning rate")
    batch_axes.step(progress, [line["batch_size"] for line in lines], where="post")
    batch_axes.set(
        ylabel="sequences per update", xlabel="budget used (%)", xlim=(0, 100)
    )
    batch_axes.set_ylim(bottom=0)
    for axes in (rate_axes, batch_axes):
        _mark(axes, config, events, "progress", 100)
    return figure


def _mark(
    axes: Any, config: Config, events: list[dict[str, Any]], key: str, scale: float
) -> None:
    """Marks the stages of the curriculum, and where training was interrupted.

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

"""Tables of scores, beside the paper's and by its rules (arXiv 2212.14034)."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cramjax.config import Config, GlueConfig
from cramjax.glue import scores, tasks
from cramjax.glue.scores import AVERAGES, BAG_OF_WORDS, NINE
from cramjax.page import Block, Heading, Table, to_markdown

# The protocol of section 5 and the authors' implementation: keys of `GlueConfig` with
# the paper's values as defaults.
PROTOCOL = (
    "trials",
    "max_length",
    "empty_second",
    "epochs",
    "batch_size",
    "learning_rates",
    "b1",
    "b2",
    "eps",
    "weight_decay",
    "warmup_share",
    "warmup_steps",
    "dropout",
    "head_width",
    "pooling",
)

# Tables 3 and 6: GLUE dev sets, medians of five trials. The last row scores the
# authors' published checkpoint, as its repository reports it.
_PAPER_GLUE = """
BERT-base, fully trained:      83.3 83.5 92.0 86.7 58.8 90.6 87.8 89.3 56.9 81.0
BERT-base, no pretraining:     34.1 34.1 79.9 17.8 47.3 50.0 68.6 77.9  0.0 45.5
crammed, 2080 Ti:              82.5 82.8 91.6 86.2 56.7 89.1 87.1 88.3 48.3 79.2
crammed, A4000:                82.7 83.1 91.5 86.4 56.5 88.8 86.9 88.2 48.6 79.2
crammed, A6000:                84.0 84.4 92.3 87.0 57.4 90.0 87.7 89.0 51.8 80.4
Izsak recipe, A6000:           76.7 76.9 87.4 78.7 50.9 85.9 84.5 81.8 39.8 73.6
BERT recipe stopped, A6000:    64.4 63.9 79.3 20.8 49.8 58.3 75.1 74.2  7.7 54.8
authors' published checkpoint: 84.1 84.6 92.0 87.4 58.5 90.2 87.5 88.9 53.3 80.7
"""
PAPER_GLUE: dict[str, list[float]] = {}  # {row: the numbers of `NINE`, their mean}
for _line in _PAPER_GLUE.strip().splitlines():
    _name, _, _numbers = _line.partition(":")
    PAPER_GLUE[_name] = [float(number) for number in _numbers.split()]

# {row: mean of the ten numbers of SuperGLUE}
PAPER_SUPERGLUE = {"BERT-base, fully trained": 56.6, "crammed, A6000": 54.2}

# Parts of the names of public texts that a trained model has chosen or written. The
# paper's texts and FineWeb are not listed: they are filtered by heuristics and by small
# classifiers of the language or (The Pile's web pages) of the quality, and the paper
# takes such text as raw.
MODEL_FILTERED = (
    "fineweb-edu",
    "ultra-fineweb",
    "dclm",
    "nemotron-cc",
    "cosmopedia",
    "smollm-corpus",
)

INTERVAL = "{difference:+.1f} ({low:+.1f} to {high:+.1f})"  # of `scores.interval`
SAMPLED = " (sampled)"
DIVERGED = " (diverged)"  # beside numbers of trials that diverged; see `notes`
EXPLAINED = (
    "Sampled: trained or scored on a part of the benchmark's rows (how many of how "
    "many is in the last table), so not to be compared with the paper's."
)
MODELS = {
    "pretrained": "the pretrained model",
    "random": "the model that is not pretrained",
    "ema": "the moving average of the pretrained weights",
    "lawa": "the average of the latest pretrained weights",
}


def page(
    results: dict[str, Any],
    config: Config,
    differences: dict[str, Any],
    imported: bool = False,
) -> str:
    """Returns glue.md; differences are {"first - second": `scores.differences`}."""
    glue = config.glue
    below = conditions(config, imported)
    blocks = [
        Heading("Fine-tuning scores", 1),
        f"Scores on dev sets, in percent (correlations times 100), higher is better; "
        f"medians of {glue.trials} trials of {glue.epochs} epochs. {how_chosen(glue)}",
        *beside_the_paper(results, glue, below),
        *averages_table(results, glue, below),
        *differences_table(results, differences, below),
        Heading("Trials at the chosen learning rates"),
        _trials(results),
        below,
        *bag_of_words(results, glue),
        *notes(results, glue),
    ]
    return to_markdown(blocks) + "\n"


def how_chosen(glue: GlueConfig) -> str:
    """Returns a sentence about the learning rate."""
    rates = ", ".join(f"{rate:g}" for rate in glue.learning_rates)
    if len(glue.learning_rates) == 1:
        return f"Learning rate {rates}."
    return (
        "Each task and column uses whichever of the learning rates "
        f"{rates} has the best median on the same dev set, so scores are optimistic."
    )


def conditions(config: Config, imported: bool = False) -> str:
    """Returns the line under every table of scores: the track and the protocol."""
    broken = broken_rules(config, imported)
    changed = departures(config.glue)
    track = f"**open** ({', '.join(broken)})" if broken else "**rules**"
    return f"Track: {track}. " + (
        "Not comparable with the paper (arXiv 2212.14034), whose settings are in "
        f"parentheses: {', '.join(changed)}."
        if changed
        else "The protocol is the paper's (arXiv 2212.14034)."
    )


def bag_of_words(results: dict[str, Any], glue: GlueConfig) -> list[Block]:
    """Returns what a bag of words is, if scored, and where it does as well."""
    if not scores.numbers(results, BAG_OF_WORDS):
        return []
    sentences = [
        "The bag of words is a logistic regression (for numbers, a ridge regression) "
        "on the tf-idf of words and pairs of neighbouring words, fitted to the same "
        "training rows."
    ]
    sentences += [
        f"It does as well as {MODELS[start]}, or better, on {'; '.join(titles)}."
        for start, titles in bag_of_words_ahead(results, glue).items()
    ]
    return [" ".join(sentences)]


def bag_of_words_ahead(
    results: dict[str, Any], glue: GlueConfig
) -> dict[str, list[str]]:
    """Returns {initialization: titles of the sets on which a bag of words wins}.

    The random initialization is left out unless it is the only one.
    """
    baseline, ahead = scores.numbers(results, BAG_OF_WORDS), {}
    for start in [s for s in glue.starts if s != "random"] or glue.starts:
        medians = scores.numbers(results, start)
        numbers = {(n, entry["metric"]): entry["title"] for n, entry in results.items()}
        titles = [
            title
            for number, title in numbers.items()
            if medians.get(number, np.inf) <= baseline.get(number, -np.inf)
        ]
        if titles:
            ahead[start] = titles
    return ahead


def _cell(value: float | None, *marks: str) -> str:
    return "-" if value is None else f"{value:.1f}{''.join(marks)}"


def baseline_cells(entry: dict[str, Any], metric: str = "") -> list[str]:
    """Returns the scores of a bag of words and of the most frequent class.

    The latter is known for the set's first metric, the default.
    """
    bag = entry.get("bag_of_words", {}).get(metric or entry["metric"])
    majority = entry["majority"] if metric in ("", entry["metric"]) else None
    return [_cell(bag), _cell(majority)]


def diverged_mark(results: dict[str, Any], start: str, names: Iterable[str]) -> str:
    """Returns a mark if trials diverged on one of the sets that are named, or ""."""
    scored = [results[n]["starts"].get(start) for n in names if n in results]
    return DIVERGED if any(s and scores.has_diverged(s) for s in scored) else ""


def beside_the_paper(
    results: dict[str, Any], glue: GlueConfig, below: str
) -> list[Block]:
    """Returns the nine numbers of each initialization, a bag of words and the paper.

    Numbers from a part of the benchmark's rows, and means of them, are marked.
    """
    names = [name for name, _ in NINE]
    found = [name for name in names if name in results]
    if not found:
        return []
    sampled = {n: SAMPLED for n in found if scores.is_sampled(results[n])}
    rows = []
    for start in (*glue.starts, BAG_OF_WORDS):
        values = scores.numbers(results, start)
        cells = [
            _cell(
                values.get(number),
                sampled.get(number[0], ""),
                diverged_mark(results, start, number[:1]),
            )
            for number in NINE
        ]
        mean = None
        if all(number in values for number in NINE):
            mean, _ = scores.mean(AVERAGES["nine"], values)
        marks = (SAMPLED if sampled else "", diverged_mark(results, start, names))
        rows.append([f"**{start}**", *cells, _cell(mean, *marks)])
    rows += [[name, *map(_cell, numbers)] for name, numbers in PAPER_GLUE.items()]
    header = [scores.TITLES[name] for name in names]
    return [
        Heading("Beside the paper"),
        Table(["", *header, "mean"], rows),
        "Plain rows are those of arXiv 2212.14034, with medians of five trials. "
        "QQP and MRPC are F1, STS-B is Pearson's correlation, CoLA Matthews'.",
        *([EXPLAINED] if sampled else []),
        below,
    ]


def averages_table(
    results: dict[str, Any], glue: GlueConfig, below: str
) -> list[Block]:
    """Returns the averages of each initialization's medians, if there are any."""
    starts = (*glue.starts, BAG_OF_WORDS)
    by_start = {start: scores.averages(results, start) for start in starts}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for key, average in AVERAGES.items():
        names = {name for group in average.groups for name, _ in group}
        for start, means in by_start.items():
            if mean := means.get(key):
                # With fewer scored tasks an average has another title: another row.
                cells = rows.setdefault((key, mean["title"]), {})
                cells[start] = _cell(
                    mean["value"], diverged_mark(results, start, names)
                )
    if not rows:
        return []
    lines = [
        [t, *(cells.get(s, "-") for s in starts)] for (_, t), cells in rows.items()
    ]
    blocks: list[Block] = [Table(["average of medians", *starts], lines), below]
    if any(key == "superglue" for key, _ in rows):
        paper = (f"{name} {value}" for name, value in PAPER_SUPERGLUE.items())
        blocks.append(f"SuperGLUE in the paper: {'; '.join(paper)}")
    return blocks


def differences_table(
    results: dict[str, Any], differences: dict[str, Any], below: str
) -> list[Block]:
    """Returns a row per set, with a column per pair of initializations, if any."""
    if not any(differences.values()):
        return []
    rows = []
    for name, entry in results.items():
        row = [entry["title"], entry["metric"]]
        for pair, found in differences.items():
            cell = "-"
            if name in found:
                cell = INTERVAL.format(**found[name])
                cell += max(
                    diverged_mark(results, s, [name]) for s in pair.split(" - ")
                )
            row.append(cell)
        rows.append(row)
    return [
        Heading("What the initialization changes"),
        Table(["task", "metric", *differences], rows),
        how_compared(),
        below,
    ]


def how_compared() -> str:
    """Returns what the intervals of differences are."""
    return (
        "Differences of the trials' means (the other tables show medians), with the "
        f"{scores.LEVEL:.0%} interval of {scores.DRAWS:,} bootstrap draws of dev rows "
        "and trials in parentheses. If the interval includes 0, these trials "
        "cannot tell which side is better."
    )


def _trials(results: dict[str, Any]) -> Table:
    """Returns a row per set, metric and initialization, with every trial's score."""
    rows = []
    for name, entry in results.items():
        for start, scored in entry["starts"].items():
            mark = diverged_mark(results, start, [name])
            parts = {entry["metric"]: scored} | scored["others"]
            for metric, part in parts.items():
                trials = part["scores"][f"{scored['best_rate']:g}"]
                rows.append(
                    [
                        entry["title"],
                        metric,
                        start,
                        f"{scored['best_rate']:g}",
                        f"**{part['median']:.1f}**{mark}",
                        _cell(part["mean"]),
                        _cell(part["std"]),
                        ", ".join(f"{score:.1f}" for score in trials),
                        *baseline_cells(entry, metric),
                        rows_used(entry, "train"),
                        rows_used(entry, "dev"),
                    ]
                )
    header = (
        "task,metric,initialization,learning rate,median,mean,standard deviation,trials"
    )
    header += ",bag of words,majority class,training rows,dev rows"
    return Table(header.split(","), rows)


def rows_used(entry: dict[str, Any], split: str) -> str:
    """Returns how many rows were used, and the total if it is larger."""
    used, full = entry[f"{split}_rows"], entry[f"full_{split}_rows"]
    full = full or entry.get(f"all_{split}_rows", used)
    return f"{used:,}" if used == full else f"{used:,} of {full:,}"


def notes(results: dict[str, Any], glue: GlueConfig) -> list[str]:
    """Returns sentences about sets and rows that were left out, each once."""
    found = [note for entry in results.values() for note in entry["notes"]]
    scored = {entry["task"] for entry in results.values()}
    found += [line for entry in results.values() for line in scores.divergences(entry)]
    ends = {min(glue.learning_rates): "lowest", max(glue.learning_rates): "highest"}
    if len(glue.learning_rates) > 1:
        found += [
            f"{entry['title']}, {start}: the best learning rate is the "
            f"{ends[scored['best_rate']]} one tried"
            for entry in results.values()
            for start, scored in entry["starts"].items()
            if scored["best_rate"] in ends
        ]
    found += [
        f"{task.title} is not scored: its training set or its dev set is missing"
        for task in tasks.get(glue)
        if task.name not in scored
    ]
    return [f"{note}." for note in dict.fromkeys(found)]


def departures(glue: GlueConfig) -> list[str]:
    """Returns the settings that are not the paper's: "epochs 20 (5)", ..."""

    def plain(value: Any) -> str:
        return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    paper = GlueConfig()
    found = [
        f"{key} {plain(getattr(glue, key))} ({plain(getattr(paper, key))})"
        for key in PROTOCOL
        if getattr(glue, key) != getattr(paper, key)
    ]
    if len(glue.learning_rates) > 1:
        found.append("the learning rate is chosen for each task (one for all)")
    return found


def broken_rules(config: Config, imported: bool) -> list[str]:
    """Returns which rules of cramming (section 2) the scores break, as far as known."""
    sources = [source.lower().replace("_", "-") for source in config.data.sources]
    filtered = any(name in source for name in MODEL_FILTERED for source in sources)
    rules = {
        "an imported model": imported,
        "pretraining began with another model's weights": bool(config.init_from),
        "text that a model has filtered": filtered and not imported,
        "more than 24 hours of pretraining": config.budget.hours > 24 and not imported,
        f"pretrained on {config.devices} GPUs": config.devices > 1 and not imported,
        "more than 5 epochs of fine-tuning": config.glue.epochs > 5,
        "a learning rate of its own for each task": len(config.glue.learning_rates) > 1,
    }
    return [rule for rule, is_broken in rules.items() if is_broken]

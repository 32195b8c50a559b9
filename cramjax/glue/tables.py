"""Scores as Markdown, beside the paper's."""

from collections.abc import Iterable
from typing import Any

from cramjax.glue import averages, paper, scores, tasks
from cramjax.glue.averages import AVERAGES, BAG_OF_WORDS, is_sampled
from cramjax.glue.difference import DRAWS, LEVEL
from cramjax.schema import Config, GlueConfig

SAMPLED = " (sampled)"
DIVERGED = " (diverged)"  # beside what is of trials that diverged; `notes` explains it
EXPLAINED = (
    "\n\nSampled: trained or scored on a part of the benchmark's rows (how many of how "
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
    """Returns glue.md.

    Args:
      results: as `evaluate.evaluate` returns them.
      config: of the run, or of the fine-tuning alone.
      differences: {"first - second": what `difference.between` returns}.
      imported: the weights are those of another project's model.
    """
    glue = config.glue
    below = conditions(config, imported)
    sections = [
        "# Fine-tuning scores",
        f"Dev sets, in percent; medians of {glue.trials} trials, epochs: "
        f"{glue.epochs}. {how_chosen(glue)}",
        _beside_the_paper(results, glue, below),
        averages_table(results, glue, below),
        _differences(results, glue, differences, below),
        "## Every trial",
        _trials(results),
        below,
        bag_of_words(results, glue),
        *notes(results, glue),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def how_chosen(glue: GlueConfig) -> str:
    """Returns a sentence about the learning rate."""
    rates = ", ".join(f"{rate:g}" for rate in glue.learning_rates)
    if len(glue.learning_rates) == 1:
        return f"Learning rate {rates}."
    return (
        f"Each initialization is shown at its own best of the learning rates {rates}, "
        "chosen by the median on the same dev set."
    )


def conditions(config: Config, imported: bool = False) -> str:
    """Returns what stands under every table of scores: the track and the protocol."""
    broken = paper.broken_rules(config, imported)
    changed = paper.departures(config.glue)
    track = f"**open** ({', '.join(broken)})" if broken else "**rules**"
    return f"Track: {track}. " + (
        f"Not the paper's protocol: {', '.join(changed)}."
        if changed
        else "The protocol is the paper's."
    )


def bag_of_words(results: dict[str, Any], glue: GlueConfig) -> str:
    """Returns what a bag of words is, and where it is as good as a model; or ""."""
    baseline = averages.numbers(results, BAG_OF_WORDS)
    if not baseline:
        return ""
    sentences = [
        "The bag of words is a logistic regression (for numbers, a ridge regression) "
        "on the tf-idf of words and pairs of neighbouring words, fitted to the same "
        "training rows."
    ]
    for start in models_beside_baselines(glue):
        medians = averages.numbers(results, start)
        titles = [
            entry["title"]
            for name, entry in results.items()
            if (number := (name, entry["metric"])) in baseline
            and number in medians
            and medians[number] <= baseline[number]
        ]
        if titles:
            sentences.append(
                f"It does as well as {MODELS[start]}, or better, on "
                f"{'; '.join(titles)}."
            )
    return " ".join(sentences)


def models_beside_baselines(glue: GlueConfig) -> list[str]:
    """Returns all initializations but "random", unless it is the only one."""
    return [s for s in glue.starts if s != "random"] or [*glue.starts]


def baseline_cells(entry: dict[str, Any], metric: str = "") -> list[str]:
    """Returns what a bag of words and the most frequent class score in a metric."""
    bag = entry.get("bag_of_words", {}).get(metric or entry["metric"])
    headline = metric in ("", entry["metric"])
    return [
        "-" if bag is None else f"{bag:.1f}",
        f"{entry['majority']:.1f}" if headline else "-",
    ]


def diverged_mark(results: dict[str, Any], start: str, names: Iterable[str]) -> str:
    """Returns the mark of a number that one of these sets makes doubtful, or "".

    Args:
      results: as `evaluate.evaluate` returns them.
      start: the initialization.
      names: of the scored sets.
    """
    scored = [results[n]["starts"].get(start) for n in names if n in results]
    return DIVERGED if any(s and scores.has_diverged(s) for s in scored) else ""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _beside_the_paper(results: dict[str, Any], glue: GlueConfig, below: str) -> str:
    """Returns the nine numbers of each start, a bag of words and the paper's rows.

    What is of a part of the benchmark's rows says so beside its number, and so does a
    mean over such.
    """
    names = {name for name, _ in paper.NINE}
    if not names & results.keys():
        return ""
    parts = {name for name in names & results.keys() if is_sampled(results[name])}
    rows = []
    for start in (*glue.starts, BAG_OF_WORDS):
        values = averages.numbers(results, start)
        found = [values.get(number) for number in paper.NINE]
        complete = None not in found
        mean = averages.mean(AVERAGES["nine"], values) if complete else None
        cells = [
            "-"
            if value is None
            else f"{value:.1f}{SAMPLED if name in parts else ''}"
            f"{diverged_mark(results, start, [name])}"
            for value, (name, _) in zip(found, paper.NINE, strict=True)
        ]
        whole = "-"
        if mean:
            marks = (SAMPLED if parts else "") + diverged_mark(results, start, names)
            whole = f"{mean[0]:.1f}{marks}"
        rows.append([f"**{start}**", *cells, whole])
    for name, (values, mean) in paper.GLUE.items():
        rows.append([name, *(f"{value:.1f}" for value in values), f"{mean:.1f}"])
    header = [averages.TITLES[name] for name, _ in paper.NINE]
    return (
        "## Beside the paper\n\n"
        + table(["", *header, "mean"], rows)
        + "\n\nPlain rows are those of arXiv 2212.14034, with medians of five trials. "
        "QQP and MRPC are F1, STS-B is Pearson's correlation, CoLA Matthews'."
        + (EXPLAINED if parts else "")
        + f"\n\n{below}"
    )


def averages_table(results: dict[str, Any], glue: GlueConfig, below: str) -> str:
    """Returns the averages of each start's medians, or "" if there are none."""
    starts = (*glue.starts, BAG_OF_WORDS)
    by_start = {start: averages.of(results, start) for start in starts}
    keys = [key for key in AVERAGES if any(key in of for of in by_start.values())]
    rows = []
    for key in keys:
        found = [of.get(key) for of in by_start.values()]
        names = {name for group in AVERAGES[key].groups for name, _ in group}
        # A start that is not scored in all tasks yet has a mean of fewer: another row.
        for title in dict.fromkeys(mean["title"] for mean in found if mean):
            cells = [
                f"{mean['value']:.1f}{diverged_mark(results, start, names)}"
                if mean and mean["title"] == title
                else "-"
                for start, mean in zip(starts, found, strict=True)
            ]
            rows.append([title, *cells])
    if not rows:
        return ""
    text = table(["average of medians", *starts], rows) + f"\n\n{below}"
    if "superglue" in keys:
        text += "\n\nSuperGLUE in the paper: " + "; ".join(
            f"{name} {value}" for name, value in paper.SUPERGLUE.items()
        )
    return text


def _differences(
    results: dict[str, Any], glue: GlueConfig, differences: dict[str, Any], below: str
) -> str:
    """Returns a row per set, with a column per pair of initializations, or "".

    And one per initialization beside a bag of words, which is fitted once and whose
    difference therefore has no interval.
    """
    if not any(differences.values()):
        return ""
    baseline = averages.numbers(results, BAG_OF_WORDS)
    models = models_beside_baselines(glue) if baseline else []

    def over_bag_of_words(name: str, entry: dict[str, Any], start: str) -> str:
        bag = baseline.get((name, entry["metric"]))
        if bag is None or start not in entry["starts"]:
            return "-"
        gain = entry["starts"][start]["mean"] - bag
        return f"{gain:+.1f}{diverged_mark(results, start, [name])}"

    rows = [
        [
            entry["title"],
            entry["metric"],
            *(
                f"{found[name]['difference']:+.1f} ({found[name]['low']:+.1f} to "
                f"{found[name]['high']:+.1f}){_of_either(results, pair, name)}"
                if name in found
                else "-"
                for pair, found in differences.items()
            ),
            *(over_bag_of_words(name, entry, start) for start in models),
        ]
        for name, entry in results.items()
    ]
    columns = [f"{start} - {BAG_OF_WORDS}" for start in models]
    return (
        "## Between initializations\n\n"
        + table(["task", "metric", *differences, *columns], rows)
        + f"\n\nDifferences of the trials' means, with the interval of {LEVEL:.0%} of "
        f"{DRAWS:,} paired bootstrap draws of dev rows and trials."
        + (" A bag of words is fitted once: no interval." if models else "")
        + f"\n\n{below}"
    )


def _of_either(results: dict[str, Any], pair: str, name: str) -> str:
    marks = [diverged_mark(results, start, [name]) for start in pair.split(" - ")]
    return max(marks)


def _trials(results: dict[str, Any]) -> str:
    """Returns a row per set, metric and start, with the score of every trial."""
    rows = []
    for name, entry in results.items():
        for start, scored in entry["starts"].items():
            mark = diverged_mark(results, start, [name])
            parts = {entry["metric"]: scored} | scored["others"]
            for metric, part in parts.items():
                trials = part["scores"][f"{scored['best_rate']:g}"]
                std = "-" if part["std"] is None else f"{part['std']:.1f}"
                rows.append(
                    [
                        entry["title"],
                        metric,
                        start,
                        f"{scored['best_rate']:g}",
                        f"**{part['median']:.1f}**{mark}",
                        f"{part['mean']:.1f}",
                        std,
                        ", ".join(f"{score:.1f}" for score in trials),
                        *baseline_cells(entry, metric),
                        rows_used(entry, "train"),
                        rows_used(entry, "dev"),
                    ]
                )
    header = "task,metric,start,learning rate,median,mean,standard deviation,trials"
    header += ",bag of words,majority class,training rows,dev rows"
    return table(header.split(","), rows)


def rows_used(entry: dict[str, Any], split: str) -> str:
    """Returns how many rows were used, and of how many if these are more."""
    used, full = entry[f"{split}_rows"], entry[f"full_{split}_rows"]
    full = full or entry.get(f"all_{split}_rows", used)
    return f"{used:,}" if used == full else f"{used:,} of {full:,}"


def notes(results: dict[str, Any], glue: GlueConfig) -> list[str]:
    """Returns what was missing or left out, a sentence each, once."""
    found = [note for entry in results.values() for note in entry["notes"]]
    scored = {entry["task"] for entry in results.values()}
    found += [line for entry in results.values() for line in scores.divergences(entry)]
    found += [
        f"{task.title} is not scored: its training set or its dev set is not there"
        for task in tasks.get(glue)
        if task.name not in scored
    ]
    return [f"{note}." for note in dict.fromkeys(found)]

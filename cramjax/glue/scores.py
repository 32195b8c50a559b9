"""Scores: metrics, what trials predicted, averages over tasks, and differences.

An entry is the part of glue.json about a scored set, see `evaluate.evaluate`.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cramjax import files
from cramjax.errors import UserError
from cramjax.glue.tasks import TASKS

PREDICTIONS = "predictions"
SUBMISSION = "submission"
BAG_OF_WORDS = "bag of words"  # takes an initialization's place in tables and averages
DRAWS = 500  # of the bootstrap
LEVEL = 0.95  # of its interval

Metric = Callable[[np.ndarray, np.ndarray], float]
Number = tuple[str, str]  # a scored set and a metric
Entry = dict[str, Any]


def _correlation(
    function: Metric, labels_N: np.ndarray, predictions_N: np.ndarray
) -> float:
    """Returns 0 where it is undefined: one side is constant, or a trial diverged.

    For constant sides as in arXiv 2212.14034, section 5.
    """
    sides = [np.asarray(x, np.float64) for x in (labels_N, predictions_N)]
    if not all(np.isfinite(x).all() and np.ptp(x) > 0 for x in sides):
        return 0.0
    with warnings.catch_warnings():  # of nearly constant sides
        warnings.simplefilter("ignore")
        value = float(function(*sides))
    return value if np.isfinite(value) else 0.0


@functools.cache
def metric_functions() -> dict[str, Metric]:
    """Returns {metric: function of labels_N and predictions_N, ids or numbers}."""
    # Imported here: at a program's start they would take a second.
    from scipy import stats
    from sklearn import metrics

    f1 = partial(metrics.f1_score, average="binary", zero_division=0)  # of class 1
    return {
        "accuracy": metrics.accuracy_score,
        "f1": f1,
        "f1a": f1,  # over all answers of all questions, as MultiRC calls it
        "macro_f1": partial(metrics.f1_score, average="macro", zero_division=0),
        "matthews": partial(_correlation, metrics.matthews_corrcoef),
        "pearson": partial(_correlation, lambda *x: stats.pearsonr(*x).statistic),
        "spearman": partial(_correlation, lambda *x: stats.spearmanr(*x).statistic),
    }


def score(metric: str, labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """Returns the metric times 100, as GLUE reports it."""
    return 100.0 * float(metric_functions()[metric](labels_N, predictions_N))


def predictions(outputs_TxNxC: np.ndarray) -> np.ndarray:
    """Returns class ids_TxN, or the numbers_TxN of a regression."""
    if outputs_TxNxC.shape[-1] == 1:
        return outputs_TxNxC[..., 0]
    return outputs_TxNxC.argmax(axis=-1)


def of_trials(
    names: Sequence[str], labels_N: np.ndarray, outputs_TxNxC: np.ndarray
) -> dict[str, list[float]]:
    """Returns {metric: score of each trial}."""
    predictions_TxN = predictions(outputs_TxNxC)
    return {m: [score(m, labels_N, p_N) for p_N in predictions_TxN] for m in names}


def diverged(outputs: Sequence[np.ndarray]) -> int:
    """Returns how many trials have outputs_TxNxC that are not finite, on any set."""
    finite_SxT = [np.isfinite(array).all(axis=(1, 2)) for array in outputs]
    return int((~np.all(finite_SxT, axis=0)).sum())


def add(entry: Entry, start: str, rate: float, trials: dict[str, list[float]]) -> None:
    """Adds {metric: score of each trial} to an entry."""
    scored = entry["starts"].setdefault(start, {"scores": {}, "others": {}})
    for metric, scores in trials.items():
        part = scored
        if metric != entry["metric"]:
            part = scored["others"].setdefault(metric, {"scores": {}})
        part["scores"][f"{rate:g}"] = scores


def summarise(entries: Sequence[Entry], start: str) -> None:
    """Adds the statistics of the best rate's trials to the entries of a task.

    The first entry's first metric chooses the rate for all of them, among the rates at
    which the fewest trials diverged. A diverged trial counts in medians as a constant
    prediction.
    """
    first = entries[0]["starts"][start]
    scores, diverged = first["scores"], first.get("diverged", {})
    best = max(
        scores,
        key=lambda rate: (-diverged.get(rate, 0), float(np.median(scores[rate]))),
    )
    for entry in entries:
        scored = entry["starts"][start]
        scored["best_rate"] = float(best)
        for part in (scored, *scored["others"].values()):
            trials = part["scores"][best]
            part["median"] = float(np.median(trials))
            part["mean"] = float(np.mean(trials))
            part["std"] = float(np.std(trials, ddof=1)) if len(trials) > 1 else None
            part["min"], part["max"] = min(trials), max(trials)


def has_diverged(scored: Mapping[str, Any]) -> bool:
    """Returns whether trials of an initialization diverged at its best rate.

    If so, trials diverged at every rate.
    """
    return bool(scored.get("diverged", {}).get(f"{scored['best_rate']:g}"))


def divergences(entry: Entry) -> list[str]:
    """Returns a sentence about each initialization with trials that diverged."""
    sentences = []
    for start, scored in entry["starts"].items():
        found = ", ".join(
            f"{count} of {len(scored['scores'][rate])} trials at {rate}"
            for rate, count in scored.get("diverged", {}).items()
            if count
        )
        rest = "these learning rates are not chosen"
        if has_diverged(scored):
            rest = (
                "trials diverged at every learning rate: its scores, marked "
                "(diverged), count them as a constant prediction, and there is no "
                "submission"
            )
        if found:
            title = f"{entry['title']}, {start}"
            sentences.append(f"{title}: the outputs of {found} are not finite; {rest}")
    return sentences


class Average(NamedTuple):
    """The mean of groups of numbers, each with the same weight."""

    title: str
    fewer: str  # the title if some are missing; `{}` becomes the count of the others
    groups: tuple[tuple[Number, ...], ...]


# The nine numbers of the paper, in its order; MNLI counts twice in their mean.
NINE = (
    ("mnli", "accuracy"),
    ("mnli_mm", "accuracy"),
    ("sst2", "accuracy"),
    ("stsb", "pearson"),
    ("rte", "accuracy"),
    ("qnli", "accuracy"),
    ("qqp", "f1"),
    ("mrpc", "f1"),
    ("cola", "matthews"),
)
_EIGHT = (NINE[:2], *((number,) for number in NINE[2:]))
_BY_ACCURACY = {
    ("qqp", "f1"): ("qqp", "accuracy"),
    ("mrpc", "f1"): ("mrpc", "accuracy"),
}
_SUPERGLUE = (
    ("cb", "macro_f1"),
    ("cb", "accuracy"),
    ("copa", "accuracy"),
    ("multirc", "f1a"),
    ("superglue_rte", "accuracy"),
    ("wic", "accuracy"),
    ("wsc", "accuracy"),
    ("boolq", "accuracy"),
    ("axb", "matthews"),
    ("axg", "accuracy"),
)
AVERAGES = {
    "nine": Average(
        "GLUE, the paper's mean of nine numbers",
        "mean of {} of the paper's nine numbers",
        tuple((number,) for number in NINE),
    ),
    "eight": Average(
        "GLUE, mean of eight tasks, MNLI averaged",
        "mean of {} of eight tasks",
        _EIGHT,
    ),
    "eight_accuracy": Average(
        "GLUE, mean of eight tasks, MNLI averaged, MRPC and QQP by accuracy",
        "mean of {} of eight tasks, MRPC and QQP by accuracy",
        tuple(tuple(_BY_ACCURACY.get(n, n) for n in group) for group in _EIGHT),
    ),
    "superglue": Average(
        "SuperGLUE, the paper's mean of ten numbers, without ReCoRD",
        "mean of {} of the paper's ten numbers of harder tasks",
        tuple((number,) for number in _SUPERGLUE),
    ),
}
TITLES = {s.name: s.title for task in TASKS.values() for s in task.dev}


def mean(average: Average, values: Mapping[Number, float]) -> tuple[float, int] | None:
    """Returns the mean of the groups that have a number, and their count.

    None if there are fewer than two.
    """
    groups = [[values[n] for n in group if n in values] for group in average.groups]
    means = [np.mean(group) for group in groups if group]
    return (float(np.mean(means)), len(means)) if len(means) > 1 else None


def numbers(results: Mapping[str, Entry], start: str) -> dict[Number, float]:
    """Returns the medians of an initialization, of every set and metric."""
    values = {}
    for name, entry in results.items():
        if start == BAG_OF_WORDS:
            found = entry.get("bag_of_words", {})
            values |= {(name, metric): value for metric, value in found.items()}
        elif scored := entry["starts"].get(start):
            parts = {entry["metric"]: scored} | scored["others"]
            values |= {(name, m): part["median"] for m, part in parts.items()}
    return values


def averages(results: Mapping[str, Entry], start: str) -> dict[str, dict[str, Any]]:
    """Returns {key of `AVERAGES`: {"title", "value"}} of an initialization's medians.

    A title names the numbers that are missing, and the sets of which only a part of the
    benchmark's rows was used. An average of fewer than two numbers is left out.
    """
    values, found = numbers(results, start), {}
    for key, average in AVERAGES.items():
        if (value := mean(average, values)) is None:
            continue
        wanted = [number for group in average.groups for number in group]
        missing = dict.fromkeys(TITLES[n[0]] for n in wanted if n not in values)
        used = dict.fromkeys(n[0] for n in wanted if n in values)
        sampled = [results[n]["title"] for n in used if is_sampled(results[n])]
        title = average.title
        if missing:
            title = f"{average.fewer.format(value[1])}, without {', '.join(missing)}"
        if sampled:
            title += f"; sampled: {', '.join(sampled)}"
        found[key] = {"title": title, "value": value[0]}
    return found


def is_sampled(entry: Mapping[str, Any]) -> bool:
    """Returns whether the number of rows is not the benchmark's.

    One in a thousand may differ: its distributions leave out different broken lines.
    """
    return any(
        abs(entry[key] - entry[f"full_{key}"]) > entry[f"full_{key}"] / 1000 > 0
        for key in ("train_rows", "dev_rows")
    )


def differences(
    results: Mapping[str, Entry], workdir: Path, first: str, second: str
) -> dict[str, dict[str, float]]:
    """Returns {set: `interval`} of two initializations, each at its own best rate."""
    found = {}
    for name, entry in results.items():
        starts = entry["starts"]
        if first in starts and second in starts:
            sides = [
                load_predictions(workdir, name, s, starts[s]["best_rate"])
                for s in (first, second)
            ]
            found[name] = interval(
                entry["metric"],
                sides[0]["labels_N"],
                *(side["predictions_TxN"] for side in sides),
            )
    return found


def interval(
    metric: str, labels_N: np.ndarray, first_TxN: np.ndarray, second_TxN: np.ndarray
) -> dict[str, float]:
    """Returns how much better the first predictions are, with a confidence interval.

    A paired bootstrap: each draw takes as many dev rows and trials as there are, with
    replacement, the same for both sides (trial i of both has the same order of rows
    and the same dropout).

    Returns:
      {"difference" (of the trials' mean scores, first minus second), "low" and "high"
      (the ends of the interval that holds `LEVEL` of the draws)}
    """
    generator = np.random.default_rng(0)
    trials, rows = min(len(first_TxN), len(second_TxN)), len(labels_N)

    def difference(rows_N: np.ndarray, trials_T: np.ndarray) -> float:
        gains = [
            score(metric, labels_N[rows_N], first_TxN[t, rows_N])
            - score(metric, labels_N[rows_N], second_TxN[t, rows_N])
            for t in trials_T
        ]
        return float(np.mean(gains))

    drawn = [
        difference(
            generator.integers(0, rows, rows), generator.integers(0, trials, trials)
        )
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    whole = difference(np.arange(rows), np.arange(trials))
    return {"difference": whole, "low": float(low), "high": float(high)}


def save_predictions(
    workdir: Path, name: str, start: str, rate: float, **arrays: np.ndarray
) -> None:
    """Writes predictions/<name>-<start>-<rate>.npz."""
    path = _npz(workdir, name, start, rate)
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as file:
        np.savez_compressed(file, **arrays)


def load_predictions(
    workdir: Path, name: str, start: str, rate: float
) -> dict[str, np.ndarray]:
    """Returns what `save_predictions` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = _npz(workdir, name, start, rate)
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except Exception as error:  # numpy and zipfile raise all kinds
        raise UserError(
            f"{path} cannot be read ({error}): delete glue.json to score again"
        ) from error


def _npz(workdir: Path, name: str, start: str, rate: float) -> Path:
    return workdir / PREDICTIONS / f"{name}-{start}-{rate:g}.npz"


def write_submission(workdir: Path, entry: Entry, start: str, name: str) -> None:
    """Writes submission/<start>/<name>.tsv for GLUE's server.

    The predictions are those of the trial with the median dev score (of an even number
    of trials, the lower of the middle two) at the initialization's best rate. There is
    no submission if trials diverged at that rate.
    """
    path = workdir / SUBMISSION / start / f"{name}.tsv"
    scored = entry["starts"][start]
    rate = scored["best_rate"]
    if has_diverged(scored):
        path.unlink(missing_ok=True)  # written for scores that were since deleted
        return
    trials = scored["scores"][f"{rate:g}"]
    trial = int(np.argsort(trials, kind="stable")[(len(trials) - 1) // 2])
    chosen_N = load_predictions(workdir, f"{name}-test", start, rate)["predictions_TxN"]
    labels = entry["labels"]
    lines = ["index\tprediction"]
    for i, value in enumerate(chosen_N[trial]):
        # Numbers are STS-B's, whose scale ends at 0 and 5.
        text = labels[value] if labels else f"{min(max(value, 0.0), 5.0):.3f}"
        lines.append(f"{i}\t{text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "\n".join(lines) + "\n")

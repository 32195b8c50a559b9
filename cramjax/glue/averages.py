"""Means over tasks, each said to be what it is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cramjax.glue.paper import NINE
from cramjax.glue.tasks import TASKS

Number = tuple[str, str]  # a scored set and a metric
BAG_OF_WORDS = "bag of words"  # stands for a start: what `bag_of_words` scores


@dataclasses.dataclass(frozen=True)
class Average:
    """A mean of numbers, or of means of numbers.

    Attributes:
      title: if all numbers are there.
      fewer: if some are not; `{}` becomes how many there are.
      groups: each counts once.
    """

    title: str
    fewer: str
    groups: tuple[tuple[Number, ...], ...]


_MNLI = (("mnli", "accuracy"), ("mnli_mm", "accuracy"))


def _eight(rename: Mapping[str, str]) -> tuple[tuple[Number, ...], ...]:
    """Returns MNLI as one group and the others, with some metrics exchanged."""
    others = [number for number in NINE if number not in _MNLI]
    return (_MNLI, *(((name, rename.get(name, m)),) for name, m in others))


AVERAGES = {
    "nine": Average(
        "GLUE, the paper's mean of nine numbers",
        "mean of {} of the paper's nine numbers",
        tuple((number,) for number in NINE),
    ),
    "eight": Average(
        "GLUE, mean of eight tasks, MNLI averaged",
        "mean of {} of eight tasks",
        _eight({}),
    ),
    "eight_accuracy": Average(
        "GLUE, mean of eight tasks, MNLI averaged, MRPC and QQP by accuracy",
        "mean of {} of eight tasks, MRPC and QQP by accuracy",
        _eight({"mrpc": "accuracy", "qqp": "accuracy"}),
    ),
    "superglue": Average(
        "SuperGLUE, the paper's mean of ten numbers, without ReCoRD",
        "mean of {} of the paper's ten numbers of harder tasks",
        tuple(
            (number,)
            for number in (
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
        ),
    ),
}


TITLES = {s.name: s.title for task in TASKS.values() for s in task.dev}


def mean(average: Average, values: Mapping[Number, float]) -> tuple[float, int] | None:
    """Returns the mean of the groups that have a number, and how many these are.

    None for fewer than two: that is no average.
    """
    groups = [[values[n] for n in group if n in values] for group in average.groups]
    means = [np.mean(group) for group in groups if group]
    return (float(np.mean(means)), len(means)) if len(means) > 1 else None


def numbers(results: Mapping[str, Any], start: str) -> dict[Number, float]:
    """Returns the medians of one start, of every set and metric."""
    values = {}
    for name, entry in results.items():
        if start == BAG_OF_WORDS:
            for metric, value in entry.get("bag_of_words", {}).items():
                values[name, metric] = value
        if start in entry["starts"]:
            scored = entry["starts"][start]
            for metric, part in ({entry["metric"]: scored} | scored["others"]).items():
                values[name, metric] = part["median"]
    return values


def of(results: Mapping[str, Any], start: str) -> dict[str, dict[str, Any]]:
    """Returns {key of `AVERAGES`: {"title", "value"}} of one start's medians.

    A title says which numbers are missing, and which are of a part of the benchmark's
    rows. What has fewer than two numbers is left out.
    """
    values, found = numbers(results, start), {}
    for key, average in AVERAGES.items():
        if (value := mean(average, values)) is not None:
            title = _title(average, values, results, value[1])
            found[key] = {"title": title, "value": value[0]}
    return found


def _title(
    average: Average,
    values: Mapping[Number, float],
    results: Mapping[str, Any],
    count: int,
) -> str:
    numbers = [number for group in average.groups for number in group]
    missing = dict.fromkeys(TITLES[n[0]] for n in numbers if n not in values)
    used = [
        results[name] for name in dict.fromkeys(n[0] for n in numbers if n in values)
    ]
    sampled = [entry["title"] for entry in used if is_sampled(entry)]
    title = average.title
    if missing:
        title = f"{average.fewer.format(count)}, without {', '.join(missing)}"
    return f"{title}; sampled: {', '.join(sampled)}" if sampled else title


def is_sampled(entry: Mapping[str, Any]) -> bool:
    """Tells whether other rows were used than the benchmark has.

    One in a thousand may differ: its distributions leave different broken lines out.
    """
    return any(
        abs(entry[key] - entry[f"full_{key}"]) > entry[f"full_{key}"] / 1000 > 0
        for key in ("train_rows", "dev_rows")
    )

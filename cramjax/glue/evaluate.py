"""All tasks, from all starts, at all learning rates: the scores of a run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax import files
from cramjax.errors import UserError
from cramjax.glue import data, metrics, tasks
from cramjax.glue.finetune import finetune
from cramjax.schema import Config

RESULTS = "glue.json"


def check(config: Config) -> None:
    """Reads every task's files, so that a mistake in them costs no training.

    Raises:
      UserError: an unknown task, or a file that cannot be used.
    """
    for task in tasks.get(config.glue.tasks).values():
        data.read(task, "dev", config.glue.data_dir)
        rows = data.read(task, "train", config.glue.data_dir)
        rows = data.subsample(rows, task, config.glue.max_train_rows, config.seed)
        if len(rows.labels_N) < config.glue.batch_size:
            raise UserError(
                f"config.glue.batch_size is {config.glue.batch_size}: {task.title} has "
                f"only {len(rows.labels_N)} training rows (config.glue.max_train_rows="
                f"{config.glue.max_train_rows})"
            )


def evaluate(
    config: Config,
    weights: dict[str, Any],
    words: Tokenizer,
    workdir: Path,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fine-tunes on every task of the config and scores its dev set.

    Results go to glue.json as they come; what is there already is not repeated.

    Args:
      config: its `glue` and `model` sections.
      weights: parameters of `model.MaskedLM` for every start but "random".
      words: the tokenizer they were trained with.
      workdir: where glue.json is.
      say: called with a line per start and learning rate.

    Returns:
      {task: {"title", "metric", "train_rows", "all_train_rows", "dev_rows",
      "majority" (score of always predicting the most frequent training label),
      "starts": {start: {"scores" ({rate: score of each trial, in percent}),
      "best_rate" (of the highest median), "median", "min", "max"}}}}
    """
    path = workdir / RESULTS
    results: dict[str, Any] = {}
    if path.exists():
        results = files.read_json(path, "delete it to score again")
    for name, task in tasks.get(config.glue.tasks).items():
        train, dev, facts = _load(config, task, words)
        result = results.setdefault(name, facts | {"starts": {}})
        for start in config.glue.starts:
            scores = result["starts"].get(start, {"scores": {}})["scores"]
            for rate in config.glue.learning_rates:
                if f"{rate:g}" in scores:
                    continue
                begin = time.monotonic()
                predictions_TxN = finetune(
                    config.model,
                    config.glue,
                    train,
                    dev,
                    len(task.labels),
                    pretrained=weights.get(start),
                    learning_rate=rate,
                    seed=config.seed,
                )
                trials = [
                    metrics.score(task.metric, dev.labels_N, predictions_N)
                    for predictions_N in predictions_TxN
                ]
                scores[f"{rate:g}"] = trials
                result["starts"][start] = _best(scores)
                files.write_json(path, results)
                say(
                    f"{task.title}: {start} at {rate:g}: {task.metric} "
                    f"{', '.join(f'{s:.1f}' for s in trials)} "
                    f"({time.monotonic() - begin:.0f}s)"
                )
    return results


def _load(
    config: Config, task: tasks.Task, words: Tokenizer
) -> tuple[data.Encoded, data.Encoded, dict[str, Any]]:
    """Returns the training and dev rows, and what does not depend on a model."""
    all_rows = data.read(task, "train", config.glue.data_dir)
    train_rows = data.subsample(all_rows, task, config.glue.max_train_rows, config.seed)
    dev_rows = data.read(task, "dev", config.glue.data_dir)
    train, dev = (
        data.encode(rows, words, config.glue.max_length)
        for rows in (train_rows, dev_rows)
    )
    majority = np.full_like(dev.labels_N, np.bincount(train.labels_N).argmax())
    return (
        train,
        dev,
        {
            "title": task.title,
            "metric": task.metric,
            "train_rows": len(train),
            "all_train_rows": len(all_rows.labels_N),
            "dev_rows": len(dev),
            "majority": metrics.score(task.metric, dev.labels_N, majority),
        },
    )


def _best(by_rate: dict[str, list[float]]) -> dict[str, Any]:
    best_rate = max(by_rate, key=lambda rate: float(np.median(by_rate[rate])))
    scores = by_rate[best_rate]
    return {
        "scores": by_rate,
        "best_rate": float(best_rate),
        "median": float(np.median(scores)),
        "min": min(scores),
        "max": max(scores),
    }

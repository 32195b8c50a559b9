"""All tasks, from all starts, at all learning rates: the scores of a run."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax.config import Config
from cramjax.glue import data, metrics, tasks
from cramjax.glue.finetune import finetune

RESULTS = "glue.json"


def check(config: Config) -> None:
    """Reads every task's files, so that a mistake in them costs no training.

    Raises:
      UserError: an unknown task, or a file that cannot be used.
    """
    for task in tasks.get(config.glue.tasks).values():
        for split in ("train", "dev"):
            data.read(task, split, config.glue.data_dir)


def evaluate(
    config: Config,
    params: Any,
    words: Tokenizer,
    workdir: Path,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fine-tunes on every task of the config and scores its dev set.

    Results go to glue.json task by task; tasks that are there already are not repeated.

    Args:
      config: its `glue` and `model` sections.
      params: the pretrained parameters of `model.MaskedLM`.
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
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, task in tasks.get(config.glue.tasks).items():
        if name not in results:
            results[name] = _evaluate_task(config, task, params, words, say)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1))
            partial.replace(path)
    return results


def _evaluate_task(config, task, params, words, say) -> dict[str, Any]:
    glue = config.glue
    all_rows = data.read(task, "train", glue.data_dir)
    train_rows = data.subsample(all_rows, task, glue.max_train_rows, config.seed)
    dev_rows = data.read(task, "dev", glue.data_dir)
    train, dev = (
        data.encode(rows, words, config.model.max_length)
        for rows in (train_rows, dev_rows)
    )
    starts = {}
    for start in glue.starts:
        by_rate = {}
        for rate in glue.learning_rates:
            begin = time.monotonic()
            predictions_TxN = finetune(
                config.model,
                glue,
                train,
                dev,
                len(task.labels),
                pretrained=params if start == "pretrained" else None,
                learning_rate=rate,
                seed=config.seed,
            )
            by_rate[f"{rate:g}"] = scores = [
                metrics.score(task.metric, dev.labels_N, predictions_N)
                for predictions_N in predictions_TxN
            ]
            say(
                f"{task.title}: {start} at {rate:g}: {task.metric} "
                f"{', '.join(f'{s:.1f}' for s in scores)} "
                f"({time.monotonic() - begin:.0f}s)"
            )
        starts[start] = _best(by_rate)
    majority = np.full_like(dev.labels_N, np.bincount(train.labels_N).argmax())
    return {
        "title": task.title,
        "metric": task.metric,
        "train_rows": len(train),
        "all_train_rows": len(all_rows.labels_N),
        "dev_rows": len(dev),
        "majority": metrics.score(task.metric, dev.labels_N, majority),
        "starts": starts,
    }


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

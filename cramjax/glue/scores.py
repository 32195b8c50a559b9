"""What trials predicted, what it scored, and the files of it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.errors import UserError

PREDICTIONS = "predictions"
SUBMISSION = "submission"


def predictions(outputs_TxNxC: np.ndarray) -> np.ndarray:
    """Returns class ids_TxN, or the numbers_TxN of a regression."""
    if outputs_TxNxC.shape[-1] == 1:
        return outputs_TxNxC[..., 0]
    return outputs_TxNxC.argmax(axis=-1)


def add(
    entry: dict[str, Any], start: str, rate: float, trials: dict[str, list[float]]
) -> None:
    """Puts {metric: score of each trial} into a set's entry of glue.json."""
    scored = entry["starts"].setdefault(start, {"scores": {}, "others": {}})
    for metric, scores in trials.items():
        other = scored["others"].setdefault(metric, {"scores": {}})
        (scored if metric == entry["metric"] else other)["scores"][f"{rate:g}"] = scores
    scored["others"].pop(entry["metric"])


def summarise(entries: Sequence[dict[str, Any]], start: str) -> None:
    """Adds to the entries of a task what the best rate's trials scored.

    The first entry's first metric chooses the rate for all of them.
    """
    scores = entries[0]["starts"][start]["scores"]
    best = max(scores, key=lambda rate: float(np.median(scores[rate])))
    for entry in entries:
        scored = entry["starts"][start]
        scored["best_rate"] = float(best)
        for part in (scored, *scored["others"].values()):
            part.update(_spread(part["scores"][best]))


def _spread(scores: Sequence[float]) -> dict[str, float | None]:
    return {
        "median": float(np.median(scores)),
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "min": min(scores),
        "max": max(scores),
    }


def save_predictions(
    workdir: Path, name: str, start: str, rate: float, **arrays: np.ndarray
) -> None:
    """Writes predictions/<name>-<start>-<rate>.npz."""
    (workdir / PREDICTIONS).mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(_npz(workdir, name, start, rate), buffer.getvalue())


def load_predictions(
    workdir: Path, name: str, start: str, rate: float
) -> dict[str, np.ndarray]:
    """Returns what `save_predictions` wrote.

    Raises:
      UserError: the file is gone or damaged.
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


def write_submission(
    workdir: Path, entry: dict[str, Any], start: str, name: str
) -> None:
    """Writes submission/<start>/<name>.tsv for GLUE's server.

    The predictions are those of the trial whose dev score is the median (of an even
    number the lower one of the middle two) at the start's best rate.
    """
    rate = entry["starts"][start]["best_rate"]
    trials = entry["starts"][start]["scores"][f"{rate:g}"]
    trial = int(np.argsort(trials, kind="stable")[(len(trials) - 1) // 2])
    chosen_N = load_predictions(workdir, f"{name}-test", start, rate)["predictions_TxN"]
    labels = entry["labels"]
    lines = ["index\tprediction"]
    for i, value in enumerate(chosen_N[trial]):
        # Numbers are STS-B's, whose scale ends at 0 and 5.
        text = labels[value] if labels else f"{min(max(value, 0.0), 5.0):.3f}"
        lines.append(f"{i}\t{text}")
    folder = workdir / SUBMISSION / start
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / f"{name}.tsv", "\n".join(lines) + "\n")

"""What trials predicted, what it scored, and the files of it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.errors import UserError
from cramjax.glue import metrics

PREDICTIONS = "predictions"
SUBMISSION = "submission"


def predictions(outputs_TxNxC: np.ndarray) -> np.ndarray:
    """Returns class ids_TxN, or the numbers_TxN of a regression."""
    if outputs_TxNxC.shape[-1] == 1:
        return outputs_TxNxC[..., 0]
    return outputs_TxNxC.argmax(axis=-1)


def of_trials(
    names: Sequence[str], labels_N: np.ndarray, outputs_TxNxC: np.ndarray
) -> dict[str, list[float]]:
    """Returns {metric: score of each trial}."""
    return {
        metric: [
            metrics.score(metric, labels_N, predictions_N)
            for predictions_N in predictions(outputs_TxNxC)
        ]
        for metric in names
    }


def diverged(outputs: Sequence[np.ndarray]) -> int:
    """Returns how many trials have outputs_TxNxC that are not finite, on any set."""
    finite_SxT = [np.isfinite(array).all(axis=(1, 2)) for array in outputs]
    return int((~np.all(finite_SxT, axis=0)).sum())


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

    The first entry's first metric chooses the rate for all of them, among those by
    which no trial diverged. If there are none, the rate is one by which the fewest
    trials did. A diverged trial counts in medians as what it is, a constant class.
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
            part.update(_spread(part["scores"][best]))


def has_diverged(scored: Mapping[str, Any]) -> bool:
    """Returns whether trials of an initialization diverged at its best rate.

    That is so only if trials diverged at every rate.
    """
    return bool(scored.get("diverged", {}).get(f"{scored['best_rate']:g}"))


def divergences(entry: dict[str, Any]) -> list[str]:
    """Returns a sentence about each start whose trials diverged."""
    sentences = []
    for start, scored in entry["starts"].items():
        diverged = {r: n for r, n in scored.get("diverged", {}).items() if n}
        if not diverged:
            continue
        found = ", ".join(
            f"{count} of {len(scored['scores'][rate])} trials at {rate}"
            for rate, count in diverged.items()
        )
        if has_diverged(scored):
            rest = (
                "trials diverged at every learning rate: its scores, marked "
                "(diverged), count them as a constant prediction, and there is no "
                "submission"
            )
        else:
            rest = "these learning rates are not chosen"
        sentences.append(
            f"{entry['title']}, {start}: the outputs of {found} are not finite; {rest}"
        )
    return sentences


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
    number the lower one of the middle two) at the start's best rate. There is no
    submission if trials diverged at that rate, that is, at every rate.
    """
    path = workdir / SUBMISSION / start / f"{name}.tsv"
    rate = entry["starts"][start]["best_rate"]
    if has_diverged(entry["starts"][start]):
        path.unlink(missing_ok=True)  # of scores that were deleted
        return
    trials = entry["starts"][start]["scores"][f"{rate:g}"]
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

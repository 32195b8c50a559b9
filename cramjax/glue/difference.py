"""How much better one start is than another, and how sure that is."""

from pathlib import Path
from typing import Any

import numpy as np

from cramjax.glue import metrics, scores

DRAWS = 500
LEVEL = 0.95


def between(
    results: dict[str, Any], workdir: Path, first: str, second: str, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compares two starts on every set that both are scored on.

    A paired bootstrap: each draw takes as many dev rows and trials as there are, with
    replacement, the same for both starts (trial i of both has the same order of rows
    and the same dropout). Both are at their own best rate.

    Args:
      results: as `evaluate.evaluate` returns them.
      workdir: with the predictions.
      first: a start.
      second: the one it is compared with.
      seed: of the draws.

    Returns:
      {set: {"difference" (of the trials' mean scores, first minus second), "low" and
      "high" (of the interval that holds `LEVEL` of the draws)}}
    """
    found = {}
    for name, entry in results.items():
        if not {first, second} <= set(entry["starts"]):
            continue
        sides = [
            scores.load_predictions(
                workdir, name, start, entry["starts"][start]["best_rate"]
            )
            for start in (first, second)
        ]
        labels_N = sides[0]["labels_N"]
        found[name] = interval(
            entry["metric"],
            labels_N,
            *(side["predictions_TxN"] for side in sides),
            seed=seed,
        )
    return found


def interval(
    metric: str,
    labels_N: np.ndarray,
    first_TxN: np.ndarray,
    second_TxN: np.ndarray,
    seed: int = 0,
) -> dict[str, float]:
    """Returns one entry of `between`."""
    generator = np.random.default_rng(seed)
    trials = min(len(first_TxN), len(second_TxN))

    def difference(rows_N: np.ndarray, trials_T: np.ndarray) -> float:
        return float(
            np.mean(
                [
                    metrics.score(metric, labels_N[rows_N], first_TxN[t, rows_N])
                    - metrics.score(metric, labels_N[rows_N], second_TxN[t, rows_N])
                    for t in trials_T
                ]
            )
        )

    drawn = [
        difference(
            generator.integers(0, len(labels_N), len(labels_N)),
            generator.integers(0, trials, trials),
        )
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "difference": difference(np.arange(len(labels_N)), np.arange(trials)),
        "low": float(low),
        "high": float(high),
    }

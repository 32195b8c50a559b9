"""Metrics by name, in percent, from scikit-learn."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

# Each takes (labels_N, predictions_N). A constant prediction has no Matthews
# correlation: scikit-learn calls it 0, and so does the paper's protocol.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0),
    "matthews": matthews_corrcoef,
}


def score(metric: str, labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """Returns the metric times 100, as GLUE reports it."""
    return 100.0 * float(METRICS[metric](labels_N, predictions_N))

"""Metrics by name, in percent, from scikit-learn and SciPy."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Metric = Callable[[np.ndarray, np.ndarray], float]


def _matthews(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """A constant side has no correlation: 0, as in arXiv 2212.14034, section 5."""
    if np.ptp(labels_N) == 0 or np.ptp(predictions_N) == 0:
        return 0.0
    return matthews_corrcoef(labels_N, predictions_N)


def _f1(average: str) -> Metric:
    def metric(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
        return f1_score(labels_N, predictions_N, average=average, zero_division=0)

    return metric


def _correlation(function: Callable) -> Metric:
    def metric(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
        """Returns 0 where there is none: a constant side, or a diverged trial."""
        sides = [np.asarray(x, np.float64) for x in (labels_N, predictions_N)]
        if not all(np.isfinite(x).all() and np.ptp(x) > 0 for x in sides):
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            value = float(function(*sides).statistic)
        return value if np.isfinite(value) else 0.0

    return metric


# Each takes (labels_N, predictions_N): class ids, or numbers for those in OF_NUMBERS.
METRICS: dict[str, Metric] = {
    "accuracy": accuracy_score,
    "f1": _f1("binary"),  # of class 1
    "f1a": _f1("binary"),  # over all answers of all questions, as MultiRC calls it
    "macro_f1": _f1("macro"),
    "matthews": _matthews,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
OF_NUMBERS = ("pearson", "spearman")
OF_TWO_CLASSES = ("f1", "f1a")


def score(metric: str, labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """Returns the metric times 100, as GLUE reports it."""
    return 100.0 * float(METRICS[metric](labels_N, predictions_N))

"""The baseline without word order: a linear model on words and word pairs."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cramjax.glue import data, scores

logger = logging.getLogger(__name__)

TOKENS = r"\w+|[^\w\s]"  # words and punctuation marks
STRENGTH = 3.0  # scikit-learn's C, the inverse of the penalty; the same for all tasks


def add(entries: dict[str, dict[str, Any]], rows: data.TaskRows[data.Rows]) -> None:
    """Adds {metric: score} as "bag_of_words" to a task's entries of glue.json."""
    if all("bag_of_words" in entry for entry in entries.values()):
        return
    task, train = rows.task, rows.train
    logger.info(
        f"{task.title}: bag of words: fitting it to {len(train):,} training rows"
    )
    started = time.monotonic()
    predictions = predict(train, rows.dev, task.regression)
    elapsed_s = time.monotonic() - started
    for scored in rows.scored:
        sides = rows.dev[scored.name].labels_N, predictions[scored.name]
        found = {metric: scores.score(metric, *sides) for metric in scored.metrics}
        entries[scored.name]["bag_of_words"] = found
        result = f"{scored.metrics[0]} {found[scored.metrics[0]]:.1f}"
        logger.info(f"{scored.title}: bag of words: {result} ({elapsed_s:.0f}s)")


def predict(
    train: data.Rows, dev: Mapping[str, data.Rows], regression: bool
) -> dict[str, np.ndarray]:
    """Trains on the rows and returns the predictions_N for every dev set.

    Each text of a row has features of its own, the tf-idf of words and pairs of
    neighbouring words. The logistic regression is fitted by averaged stochastic
    gradient descent, which stays cheap with as many rows as MNLI has. Numbers are
    predicted by a ridge regression. The same rows give the same digits.
    """
    # Imported here: at a program's start it would take a second.
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge, SGDClassifier

    first, *_ = train.labels_N
    if (train.labels_N == first).all():  # few rows of a rare class: nothing to fit
        return {name: np.full_like(rows.labels_N, first) for name, rows in dev.items()}
    of_train, of_dev = [], {name: [] for name in dev}
    for i, texts in enumerate(zip(*train.texts, strict=True)):
        if not any(map(str.strip, texts)):  # a column that is empty in every row
            continue
        words = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=TOKENS, dtype=np.float32
        )
        of_train.append(words.fit_transform(texts))
        for name, rows in dev.items():
            of_dev[name].append(words.transform(row[i] for row in rows.texts))
    model = (
        Ridge(random_state=0)
        if regression
        else SGDClassifier(
            loss="log_loss",
            alpha=1 / (STRENGTH * len(train)),
            average=True,
            max_iter=100,
            random_state=0,
        )
    )
    model.fit(sparse.hstack(of_train, format="csr"), train.labels_N)
    return {
        name: model.predict(sparse.hstack(parts, format="csr"))
        for name, parts in of_dev.items()
    }

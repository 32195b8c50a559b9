"""In which order, and how long, rows go through fine-tuning."""

from collections.abc import Iterator

import numpy as np

from cramjax.data import tokenizer
from cramjax.glue.data import Encoded
from cramjax.schema import GlueConfig

LENGTH_STEP = 32  # batches are padded to a multiple of it: few shapes, few compilations
CHUNK = 64  # steps of a compiled loop, at most: small batches are not bound by Python


def chunks(
    train: Encoded, glue: GlueConfig, trials: range, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (length, rows_SxTxB): steps in a row of the same length, at most CHUNK.

    A chunk ends where its epoch does.

    A step is as long as the longest row of all trials' batches, rounded up to
    LENGTH_STEP, also where only some of the trials are asked for: dropout depends on
    the shape. Rows are not grouped by length, which would be another shuffle.
    """
    waiting: list[np.ndarray] = []
    length = 0
    steps_per_epoch = len(train) // glue.batch_size
    for step, rows_TxB in enumerate(batches(len(train), glue, seed)):
        needed = padded_length(train.tokens_NxL[rows_TxB], glue.max_length)
        new_epoch = step % steps_per_epoch == 0
        if waiting and (needed != length or len(waiting) == CHUNK or new_epoch):
            yield length, np.stack(waiting)
            waiting = []
        length = needed
        waiting.append(rows_TxB[trials.start : trials.stop])
    if waiting:
        yield length, np.stack(waiting)


def batches(rows: int, glue: GlueConfig, seed: int) -> Iterator[np.ndarray]:
    """Yields int32 rows_TxB; the order depends on (seed, trial, epoch) alone."""
    usable = rows - rows % glue.batch_size
    for epoch in range(glue.epochs):
        order_TxN = np.stack(
            [
                np.random.default_rng([seed, trial, epoch]).permutation(rows)
                for trial in range(glue.trials)
            ]
        ).astype(np.int32)
        for start in range(0, usable, glue.batch_size):
            yield order_TxN[:, start : start + glue.batch_size]


def padded_length(tokens: np.ndarray, max_length: int) -> int:
    """Returns the longest row's length, rounded up to LENGTH_STEP.

    Not beyond `max_length`: there may be no more learned positions than that.
    """
    longest = int((tokens != tokenizer.PAD).sum(axis=-1).max())
    return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, max_length)


def resized(tokens_NxL: np.ndarray, length: int) -> np.ndarray:
    """Cuts or pads the rows."""
    missing = max(length - tokens_NxL.shape[1], 0)
    widths = [(0, 0), (0, missing)]
    return np.pad(tokens_NxL, widths, constant_values=tokenizer.PAD)[:, :length]

"""How likely a masked language model finds a text."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config import ModelConfig
from cramjax.model.encoder import MaskedLM
from cramjax.tokens import MASK, PAD

LENGTH_STEP = 16  # rows are padded to a multiple of it: few shapes, few compilations
BATCH = 256


def pseudo_log_likelihoods(
    model: ModelConfig,
    params: Any,
    rows: Sequence[Sequence[int]],
    length_step: int = LENGTH_STEP,
) -> np.ndarray:
    """Returns each row's sum of log-probabilities of its tokens, masked one at a time.

    "Masked Language Model Scoring" (Salazar et al. 2020, arXiv 1910.14659). The first
    and the last token of each row are not scored. `params` are of `encoder.MaskedLM`.
    """
    masked, answers, row_R = [], [], []
    for number, ids in enumerate(rows):
        for place in range(1, len(ids) - 1):
            masked.append([*ids[:place], MASK, *ids[place + 1 :]])
            answers.append((place, ids[place]))
            row_R.append(number)
    sums_N = np.zeros(len(rows), np.float64)
    answers_Rx2 = np.array(answers).reshape(-1, 2)
    for chosen, tokens_BxL in batches(masked, BATCH, model.max_length, length_step):
        answers_Bx2 = np.zeros((len(tokens_BxL), 2), np.int32)
        answers_Bx2[: len(chosen)] = answers_Rx2[chosen]
        scores_B = _scores(model, params, tokens_BxL, answers_Bx2)
        scores_B = np.asarray(scores_B)[: len(chosen)]
        np.add.at(sums_N, np.array(row_R)[chosen], scores_B)
    return sums_N


def percent_preferred(scores_N: np.ndarray) -> float:
    """Returns how often, in percent, the first of a pair scores higher than the second.

    The scores are the first pair's two, then the next pair's. A tie counts half.
    """
    first_P, second_P = scores_N[::2], scores_N[1::2]
    return 100 * float(np.mean((first_P > second_P) + 0.5 * (first_P == second_P)))


def batches(
    rows: Sequence[Sequence[int]],
    size: int,
    max_length: int,
    length_step: int = LENGTH_STEP,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (chosen, tokens_BxL): rows of similar length together, B = size.

    The last batch is filled up by repeating a row.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        filled = [*chosen, *[chosen[-1]] * (size - len(chosen))]
        yield chosen, padded([rows[i] for i in filled], max_length, length_step)


def padded(
    rows: Sequence[Sequence[int]], max_length: int, length_step: int = LENGTH_STEP
) -> np.ndarray:
    """Returns tokens_BxL; L is a multiple of the step, or `max_length`."""
    longest = max(map(len, rows))
    length = min(-(-longest // length_step) * length_step, max_length)
    tokens_BxL = np.full((len(rows), length), PAD)
    for row, ids in zip(tokens_BxL, rows, strict=True):
        row[: len(ids)] = ids
    return tokens_BxL


@functools.partial(jax.jit, static_argnums=0)
def logits(
    model: ModelConfig, params: Any, tokens_BxL: jax.Array, places_BxP: jax.Array
) -> jax.Array:
    """Returns logits_BxPxV at some positions of padded rows."""
    mask_BxL = tokens_BxL != PAD
    return MaskedLM(model).apply({"params": params}, tokens_BxL, places_BxP, mask_BxL)


@functools.partial(jax.jit, static_argnums=0)
def _scores(
    model: ModelConfig, params: Any, tokens_BxL: jax.Array, answers_Bx2: jax.Array
) -> jax.Array:
    """Returns the log-probability of (place, id) in each row."""
    logits_Bx1xV = logits(model, params, tokens_BxL, answers_Bx2[:, :1])
    logs_BxV = jax.nn.log_softmax(logits_Bx1xV[:, 0].astype(jnp.float32))
    return jnp.take_along_axis(logs_BxV, answers_Bx2[:, 1:], axis=1)[:, 0]

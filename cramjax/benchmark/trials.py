"""Fine-tuning trials: all in one program, over one after the other."""

import dataclasses
from typing import Any

import numpy as np

from cramjax.benchmark import timing
from cramjax.benchmark.timing import Deadline
from cramjax.data import tokenizer
from cramjax.data.kinds import SPECIAL_TOKENS
from cramjax.glue.data import Encoded
from cramjax.glue.finetune import CHUNK, finetune, padded_length
from cramjax.schema import Config

TRIALS = 5
ROUNDS = 3
WINDOW_S = 4.0  # of one fine-tuning


def needed_s(compile_s: float) -> float:
    """Returns about how long `compare` takes, from a training step's compilation."""
    return 3 * compile_s + 2 * (ROUNDS + 1) * WINDOW_S


def compare(config: Config, tokens_per_s: float, deadline: Deadline) -> dict[str, Any]:
    """Fine-tunes made-up rows by the config's protocol, both ways in turn.

    Args:
      config: its `model`, `glue` and `seed`.
      tokens_per_s: of pretraining, to choose how long fine-tuning should be.
      deadline: of the benchmark.

    Returns:
      {"ratio" (time in one program over time one after the other: "median", "min",
      "max", "rounds"), "trials", "steps" of each, "rows" of a step, "length" of a row}
    """
    glue = config.glue
    steps = _steps(config, tokens_per_s)
    rows = random_rows(config, steps * glue.batch_size)
    # Predicting one short row costs next to nothing, and waits for the training.
    short = Encoded(rows.tokens_NxL[:1, :8], rows.labels_N[:1])

    def train(at_once: int) -> None:
        protocol = dataclasses.replace(
            glue, trials=TRIALS, trials_at_once=at_once, epochs=1
        )
        finetune(
            config.model,
            protocol,
            rows,
            [short],
            2,
            pretrained=None,
            learning_rate=glue.learning_rates[0],
            seed=config.seed,
        )

    sides = {"together": lambda: train(TRIALS), "apart": lambda: train(1)}
    for work in sides.values():
        work()  # compiles
    seconds = timing.alternate(sides, ROUNDS, deadline)
    return {
        "ratio": timing.ratios(seconds["together"], seconds["apart"]),
        "trials": TRIALS,
        "steps": steps,
        "rows": glue.batch_size,
        "length": padded_length(rows.tokens_NxL, glue.max_length),
    }


def _steps(config: Config, tokens_per_s: float) -> int:
    """Returns how many steps of all trials take about WINDOW_S, in [2, CHUNK]."""
    tokens = TRIALS * config.glue.batch_size * config.glue.max_length
    return min(max(round(WINDOW_S * tokens_per_s / tokens), 2), CHUNK)


def random_rows(config: Config, count: int) -> Encoded:
    """Returns rows of random tokens and lengths; the first one has the full length."""
    generator = np.random.default_rng(config.seed)
    length = config.glue.max_length
    tokens_NxL = generator.integers(
        len(SPECIAL_TOKENS), config.model.vocab_size, (count, length), np.int32
    )
    lengths_N = generator.integers(8, length + 1, count)
    lengths_N[0] = length
    tokens_NxL[np.arange(length)[None] >= lengths_N[:, None]] = tokenizer.PAD
    return Encoded(tokens_NxL, generator.integers(0, 2, count, np.int32))

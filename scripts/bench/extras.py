"""Measurements beside the training step: reading, the host's loop, fine-tuning."""

import contextlib
import dataclasses
import io
import tempfile
import time
import types
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.timing import READ_ROWS, Deadline, alternate, ratios, read_speed
from cramjax.config import Config, load
from cramjax.data.corpus import Corpus
from cramjax.data.prepare import prepare
from cramjax.device.compile import FIRST_TOKEN, MicroStep
from cramjax.glue.data import Encoded
from cramjax.glue.finetune import CHUNK, finetune, padded_length
from cramjax.tokens import PAD
from cramjax.training import log as metrics_log
from cramjax.training import train_step
from cramjax.training.clock import Clock
from cramjax.training.log import MetricsLog, Throughput, TrainMetrics
from cramjax.training.loop import Session, train

HOST_S = 30.0  # an estimate for `host`, which also packs a corpus
LOOP_S = 6.0
READ_S = 2.0
TRIALS = 5
ROUNDS = 3
TRIALS_S = 4.0  # of one fine-tuning


def host(config: Config) -> dict[str, float]:
    """Measures the host alone, on the embedded books in blocks of the config's length.

    Returns:
      {"read_tokens_per_s" (batches in the config's order), "loop_tokens_per_s" (the
      training loop around a step without work; median over the lines of its log),
      "loop_micro_batch"}
    """
    with tempfile.TemporaryDirectory() as folder:
        length = f"model.max_length={config.model.max_length}"
        corpus = prepare(load("small", [f"data.dir={folder}", length]))
        order, seed = config.data.order, config.seed
        return {
            "read_tokens_per_s": read_speed(corpus, order, seed, READ_S),
            "loop_tokens_per_s": _loop_speed(config, corpus, Path(folder)),
            "loop_micro_batch": READ_ROWS,
        }


def _loop_speed(config: Config, corpus: Corpus, workdir: Path) -> float:
    """Runs the training loop without a step's work, validation and checkpoints."""
    sequences = max(config.batch.sequences, READ_ROWS)
    config = dataclasses.replace(
        config,
        micro_batch=READ_ROWS,
        batch=dataclasses.replace(config.batch, sequences=sequences),
        budget=dataclasses.replace(
            config.budget, hours=LOOP_S / 3600, tokens=0, flops=0.0
        ),
        validation=dataclasses.replace(config.validation, every_minutes=0.0),
    )
    methods = ("save", "save_at_last")
    store = types.SimpleNamespace(**dict.fromkeys(methods, lambda *_: None))
    step = idle_step(train_step.build(config))
    [tokens_BxL] = step.random_batches(1)
    state, _ = step.function(step.fresh_state(), tokens_BxL, np.float32(0))  # compiles
    path, clock = workdir / "metrics.jsonl", Clock(config.budget)
    with MetricsLog(path) as log, contextlib.redirect_stdout(io.StringIO()):
        stopped_by = train(
            Session(
                config=config,
                corpus=corpus,
                workdir=workdir,
                store=store,
                log=log,
                micro_step=step,
                state=state,
                clock=clock,
                train_metrics=TrainMetrics(),
                throughput=Throughput(clock, None),
                started_at=time.monotonic(),
            )
        )
    if stopped_by is not None:
        raise KeyboardInterrupt(stopped_by)
    speeds = [x["tokens_per_s"] for x in metrics_log.read(path) if "tokens_per_s" in x]
    return median(speeds[:-1] or speeds)  # the last line may be of a few steps


def idle_step(step: MicroStep) -> MicroStep:
    """Returns a micro-step with the same arguments and results that does no work.

    It reads one token, so that the batch has to reach the device.
    """

    def function(state, tokens_BxL, progress):
        _, shapes = jax.eval_shape(step.function, state, tokens_BxL, progress)
        metrics = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
        metrics["finite"] = jnp.bool_(True)
        metrics["loss"] = 1 / (1 + tokens_BxL[0, 0].astype(jnp.float32))
        return state.replace(step=state.step + 1), metrics

    same = step.sharding
    jitted = jax.jit(
        function, donate_argnums=0, in_shardings=(same, same, same), out_shardings=same
    )
    return dataclasses.replace(step, function=jitted)


def trials_needed_s(compile_s: float) -> float:
    """Estimates the duration of `trials` from a training step's compilation."""
    return 3 * compile_s + 2 * (ROUNDS + 1) * TRIALS_S


def trials(config: Config, tokens_per_s: float, deadline: Deadline) -> dict[str, Any]:
    """Fine-tunes on random rows: trials in one program, and one after the other.

    Args:
      config: its `model`, `glue` (the protocol) and `seed`.
      tokens_per_s: of pretraining, which the number of steps is chosen by.
      deadline: of the benchmark.

    Returns:
      {"ratio" (time in one program over time one after the other: "median", "min",
      "max", "rounds"), "trials", "steps" of each, "rows" of a step, "length" of a row}
    """
    glue = dataclasses.replace(config.glue, trials=TRIALS, epochs=1)
    tokens = TRIALS * glue.batch_size * glue.max_length  # of one step of all trials
    steps = min(max(round(TRIALS_S * tokens_per_s / tokens), 2), CHUNK)
    rows = random_rows(config, steps * glue.batch_size)
    # Predicting one short row costs next to nothing, and waits for the training.
    short = Encoded(rows.tokens_NxL[:1, :8], rows.labels_N[:1])

    def train(at_once: int) -> None:
        finetune(
            config.model,
            dataclasses.replace(glue, trials_at_once=at_once),
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
    seconds = alternate(sides, ROUNDS, deadline)
    return {
        "ratio": ratios(seconds["together"], seconds["apart"]),
        "trials": TRIALS,
        "steps": steps,
        "rows": glue.batch_size,
        "length": padded_length(rows.tokens_NxL, glue.max_length),
    }


def random_rows(config: Config, count: int) -> Encoded:
    """Returns rows of random tokens and lengths; the first one has the full length."""
    generator = np.random.default_rng(config.seed)
    length = config.glue.max_length
    shape = (count, length)
    tokens_NxL = generator.integers(FIRST_TOKEN, config.model.vocab_size, shape)
    lengths_N = generator.integers(8, length + 1, count)
    lengths_N[0] = length
    tokens_NxL[np.arange(length)[None] >= lengths_N[:, None]] = PAD
    labels_N = generator.integers(0, 2, count, np.int32)
    return Encoded(tokens_NxL.astype(np.int32), labels_N)

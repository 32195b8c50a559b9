"""What is measured beside the training step: reading, the host's loop, fine-tuning."""

import contextlib
import dataclasses
import io
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.timing import READ_ROWS, Deadline, alternate, ratios, read_speed
from cramjax.config import Config, load
from cramjax.data import tokenizer
from cramjax.data.corpus import Corpus
from cramjax.data.prepare import prepare
from cramjax.device.compile import FIRST_TOKEN
from cramjax.glue.data import Encoded
from cramjax.glue.finetune import CHUNK, finetune, padded_length
from cramjax.training import log as metrics_log
from cramjax.training import train_step
from cramjax.training.clock import Clock
from cramjax.training.log import MetricsLog, Readings, Throughput
from cramjax.training.loop import Session, train

HOST_S = 30.0  # what `host` takes: it packs a corpus, too
LOOP_S = 6.0
READ_S = 2.0
TRIALS = 5
ROUNDS = 3
TRIALS_S = 4.0  # of one fine-tuning


def host(config: Config) -> dict[str, float]:
    """Measures the host alone, on the package's books in blocks of the config's length.

    Returns:
      {"read_tokens_per_s" (batches in the config's order), "loop_tokens_per_s" (the
      training loop with a step that only passes its state on; median over the lines of
      its log), "loop_micro_batch"}
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"data.dir={folder}",
            f"model.max_length={config.model.max_length}",
        ]
        corpus = prepare(load("quickstart", overrides))
        order, seed = config.data.order, config.seed
        return {
            "read_tokens_per_s": read_speed(corpus, order, seed, READ_S),
            "loop_tokens_per_s": _loop_speed(_for_loop(config), corpus, Path(folder)),
            "loop_micro_batch": READ_ROWS,
        }


def _for_loop(config: Config) -> Config:
    """Keeps what the loop does in every step; nothing is validated or saved."""
    sequences = max(config.batch.sequences, READ_ROWS)
    return dataclasses.replace(
        config,
        micro_batch=READ_ROWS,
        batch=dataclasses.replace(config.batch, sequences=sequences),
        budget=dataclasses.replace(
            config.budget, hours=LOOP_S / 3600, tokens=0, flops=0.0
        ),
        validation=dataclasses.replace(config.validation, every_minutes=0.0),
    )


class _NoStore:
    """Keeps no checkpoints."""

    def nothing(self, *_: Any) -> None:
        pass

    save = save_at_last = nothing


def idle_step(config: Config) -> Any:
    """Returns a jitted step with the real one's arguments and results, but no work.

    It reads one token, so that the batch has to get to the device.
    """
    real = train_step.build(config)

    def step(state, tokens_BxL, progress):
        shapes = jax.eval_shape(real.function, state, tokens_BxL, progress)[1]
        metrics = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
        metrics["finite"] = jnp.bool_(True)
        metrics["loss"] = 1 / (1 + tokens_BxL[0, 0].astype(jnp.float32))
        return state.replace(step=state.step + 1), metrics

    same = real.sharding
    return jax.jit(
        step, donate_argnums=0, in_shardings=(same, same, same), out_shardings=same
    )


def _loop_speed(config: Config, corpus: Corpus, workdir: Path) -> float:
    path, store = workdir / "metrics.jsonl", _NoStore()
    with MetricsLog(path) as log:
        idle = dataclasses.replace(train_step.build(config), function=idle_step(config))
        state, clock = idle.fresh_state(), Clock(config.budget)
        session = Session(
            config,
            corpus,
            workdir,
            store,
            log,
            idle,
            state,
            clock,
            Readings(),
            Throughput(clock, None),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # hides its progress
            stopped_by = train(session)
    if stopped_by is not None:
        raise KeyboardInterrupt(stopped_by)
    # The first line has the compilation in it, the last one may be of a few steps.
    lines = [line for line in metrics_log.read(path) if "tokens_per_s" in line]
    return median(line["tokens_per_s"] for line in lines[1:-1] or lines)


def trials_needed_s(compile_s: float) -> float:
    """Returns about how long `trials` takes, from a training step's compilation."""
    return 3 * compile_s + 2 * (ROUNDS + 1) * TRIALS_S


def trials(config: Config, tokens_per_s: float, deadline: Deadline) -> dict[str, Any]:
    """Fine-tunes made-up rows: trials in one program, and one after the other.

    Args:
      config: its `model`, `glue` (the protocol) and `seed`.
      tokens_per_s: of pretraining, to choose how long fine-tuning should be.
      deadline: of the benchmark.

    Returns:
      {"ratio" (time in one program over time one after the other: "median", "min",
      "max", "rounds"), "trials", "steps" of each, "rows" of a step, "length" of a row}
    """
    glue = config.glue
    tokens = TRIALS * glue.batch_size * glue.max_length  # of one step of all trials
    steps = min(max(round(TRIALS_S * tokens_per_s / tokens), 2), CHUNK)
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
    tokens_NxL = generator.integers(
        FIRST_TOKEN, config.model.vocab_size, (count, length), np.int32
    )
    lengths_N = generator.integers(8, length + 1, count)
    lengths_N[0] = length
    tokens_NxL[np.arange(length)[None] >= lengths_N[:, None]] = tokenizer.PAD
    return Encoded(tokens_NxL, generator.integers(0, 2, count, np.int32))

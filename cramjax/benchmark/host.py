"""The host alone: reading batches, and the training loop around a step without work."""

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.benchmark.reading import ROWS, read_speed
from cramjax.data.corpus import Corpus
from cramjax.data.prepare import prepare
from cramjax.device.compilation import MicroStep
from cramjax.schema import Config
from cramjax.training import metrics_log, train_step
from cramjax.training.counters import Counters
from cramjax.training.loop import Loop, begin
from cramjax.training.metrics_log import MetricsLog

LOOP_S = 6.0
READ_S = 2.0


def measure(config: Config) -> dict[str, float]:
    """Measures on the package's books, packed in blocks of the config's length.

    Returns:
      {"read_tokens_per_s" (batches in the config's order), "loop_tokens_per_s" (the
      training loop with a step that only passes its state on; median over the lines of
      its log), "loop_micro_batch"}
    """
    with tempfile.TemporaryDirectory() as folder:
        corpus = prepare(_on_books(config, folder), say=lambda _: None)
        return {
            "read_tokens_per_s": read_speed(
                corpus, config.data.order, config.seed, READ_S
            ),
            "loop_tokens_per_s": _loop_speed(_for_loop(config), corpus, Path(folder)),
            "loop_micro_batch": ROWS,
        }


def _on_books(config: Config, folder: str) -> Config:
    """The embedded text fills 4096 entries, and which tokens they are costs nothing."""
    from cramjax.config import load

    overrides = [f"data.dir={folder}", f"model.max_length={config.model.max_length}"]
    return load(Path(__file__).parents[2] / "configs" / "quickstart.py", overrides)


def _for_loop(config: Config) -> Config:
    """Keeps what the loop does in every step; nothing is validated or saved."""
    return dataclasses.replace(
        config,
        micro_batch=ROWS,
        batch=dataclasses.replace(
            config.batch, sequences=max(config.batch.sequences, ROWS)
        ),
        budget=dataclasses.replace(
            config.budget, hours=LOOP_S / 3600, tokens=0, flops=0.0
        ),
        validation=dataclasses.replace(config.validation, every_minutes=0.0),
    )


class _NoStore:
    """Keeps no checkpoints."""

    def latest_step(self) -> None:
        return None

    def check_room(self, state: Any) -> None:
        pass

    def save(self, *_: Any) -> None:
        pass

    def wait(self) -> None:
        pass


def idle_step(config: Config) -> Any:
    """Returns a jitted step with the real one's arguments and results, but no work.

    It reads one token, so that the batch has to get to the device.
    """
    same = train_step.replicated(train_step.make_mesh())
    real = train_step.make_micro_step(config, train_step.make_mesh())

    def step(state, tokens_BxL, progress):
        shapes = jax.eval_shape(real, state, tokens_BxL, progress)[1]
        metrics = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
        metrics["finite"] = jnp.bool_(True)
        metrics["loss"] = 1 / (1 + tokens_BxL[0, 0].astype(jnp.float32))
        return state.replace(step=state.step + 1), metrics

    return jax.jit(
        step, donate_argnums=0, in_shardings=(same, same, same), out_shardings=same
    )


def _loop_speed(config: Config, corpus: Corpus, workdir: Path) -> float:
    path, store = workdir / "metrics.jsonl", _NoStore()
    with MetricsLog(path) as log:
        state, _ = begin(config, store, 0)
        idle = MicroStep(idle_step(config), time.monotonic())
        loop = Loop(config, corpus, store, log, workdir, state, Counters(), 0, idle)
        with contextlib.redirect_stdout(io.StringIO()):  # its progress is no news
            stopped_by = loop.run()
    if stopped_by is not None:
        raise KeyboardInterrupt(stopped_by)
    # The first line has the compilation in it, the last one may be of a few steps.
    lines = [line for line in metrics_log.read(path) if "tokens_per_s" in line]
    return statistics.median(line["tokens_per_s"] for line in lines[1:-1] or lines)

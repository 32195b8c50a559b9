"""The host loop: one budget, one stream of blocks, one jitted micro-step."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cramjax import files, train_step
from cramjax.budget import BudgetClock
from cramjax.checkpoint import CheckpointStore, abstract
from cramjax.data.corpus import Corpus
from cramjax.data.ordering import BlockStream
from cramjax.errors import Interrupted, UserError
from cramjax.flops import train_flops_per_token
from cramjax.metrics_log import MetricsLog
from cramjax.progress import Progress
from cramjax.schema import Config
from cramjax.validation import held_out_loss

# In the workdir; the summary is there if and only if pretraining is finished.
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
SUMMARY = "pretrain.json"


def pretrain(
    config: Config, corpus: Corpus, workdir: Path
) -> tuple[Any, dict[str, Any]]:
    """Trains for the budget, or for what is left of it, and validates.

    Writes checkpoints/, metrics.jsonl and, when all is done, pretrain.json in the
    workdir.

    Returns:
      The float32 parameters of `model.MaskedLM`, and the summary of pretrain.json.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the state is saved.
      UserError: the device has too little memory.
    """
    mesh = train_step.make_mesh()
    with (
        _out_of_memory_explained(config),
        CheckpointStore(workdir / CHECKPOINTS, config.checkpoint) as store,
        MetricsLog(workdir / METRICS) as log,
    ):
        state, host = _resume_or_start(config, mesh, store, log)
        loop = _Loop(config, corpus, mesh, store, log, state, host)
        stopped_by = loop.run()
        if stopped_by is not None:
            raise Interrupted(
                f"stopped by {signal.Signals(stopped_by).name} after "
                f"{loop.clock.tokens:,} tokens ({loop.clock.progress():.1%} of the "
                "budget); the same command goes on from here",
                stopped_by,
            )
    params = loop.state.params
    summary = _summary(config, corpus, params, loop.host)
    files.write_json(workdir / SUMMARY, summary)
    return params, summary


@contextlib.contextmanager
def _out_of_memory_explained(config: Config) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        raise UserError(
            f"config.micro_batch is {config.micro_batch}: too much for the memory of "
            f"{jax.devices()[0].device_kind}; pass a smaller one, or a smaller model"
        ) from error


def read_back(config: Config, workdir: Path) -> tuple[Any, dict[str, Any]]:
    """Returns what `pretrain` returned when it finished in this workdir.

    Raises:
      UserError: its files are gone or damaged.
    """
    with CheckpointStore(workdir / CHECKPOINTS, config.checkpoint) as store:
        like = abstract(
            lambda: train_step.init_state(config),
            train_step.replicated(train_step.make_mesh()),
        )
        step = store.latest_step()
        if step is None:
            raise UserError(
                f"{workdir / SUMMARY} says that pretraining is finished, but there is "
                f"no checkpoint beside it: bring {workdir / CHECKPOINTS} back, or "
                "delete the file to train again"
            )
        state = store.state(step, like)
    summary = files.read_json(workdir / SUMMARY, "delete it to make it again")
    return state.params, summary


def _resume_or_start(config, mesh, store, log):
    make = lambda: train_step.init_state(config)  # noqa: E731
    sharding = train_step.replicated(mesh)
    step = store.latest_step()
    charged_s = log.last_elapsed_s()  # work lost since the checkpoint included
    if step is None:
        log.cut(0)
        state = jax.jit(make, out_shardings=sharding)()
        host = {
            "step": 0,
            "updates": 0,
            "position": 0,
            "tokens": 0,
            "elapsed_s": charged_s,
            "window": [],
            "last_loss": None,
            "latest": {"skipped": 0},
        }
        if charged_s:
            log.write(event="restarted", step=0, elapsed_s=charged_s)
        return state, host
    state = store.state(step, abstract(make, sharding))
    host = store.host(step)
    host["elapsed_s"] = max(host["elapsed_s"], charged_s)
    log.cut(step)
    log.write(event="resumed", step=step, elapsed_s=host["elapsed_s"])
    return state, host


class _Loop:
    """The loop's moving parts: device state, host counters and the step in flight.

    `host` is what a checkpoint keeps beside the state: counts of `step` (micro-steps),
    `updates`, `position` (blocks) and `tokens`, `elapsed_s`, the losses since the last
    metrics line (`window`), and what the last line and the last step said.
    """

    def __init__(self, config, corpus, mesh, store, log, state, host):
        self._config, self._store, self._log = config, store, log
        self.state, self.host = state, dict(host)
        self._micro_step = train_step.make_micro_step(config, mesh)
        self._stream = BlockStream(corpus, config.data.order, config.seed)
        self.clock = BudgetClock(
            config.budget,
            train_flops_per_token(config.model, config.objective.mask_rate),
            elapsed_s=host["elapsed_s"],
            tokens=host["tokens"],
        )
        self._in_flight: dict[str, jax.Array] | None = None
        self._last_save = self._last_line = time.monotonic()
        self._line_tokens = self.clock.tokens

    def run(self) -> int | None:
        """Steps until the budget is used (None), or a signal comes (its number).

        When it returns the state is on disk: a second signal cannot prevent that.
        """
        log_every = self._config.log.every_steps
        save_every_s = self._config.checkpoint.every_minutes * 60
        with _stop_signals() as stop, Progress(self._config.budget) as progress:
            while (used := self.clock.progress()) < 1 and not stop:
                self._step(used)
                progress.update(self.clock, self.host)
                if self.host["step"] % log_every == 0:
                    self._write_line()
                if time.monotonic() - self._last_save > save_every_s:
                    self._save()
            finished = self.clock.progress() >= 1
            if finished and self.host["step"] % log_every:
                self._write_line()
            self._save()
            self._store.wait()
        return stop[0] if stop else None

    def _step(self, used: float) -> None:
        rows = self._config.micro_batch
        tokens_BxL = self._stream.batch(self.host["position"], rows)
        self.state, metrics = self._micro_step(self.state, tokens_BxL, np.float32(used))
        # The device works on this step while the host reads the one before it: it never
        # waits for the host, and the host runs at most one step ahead of it.
        self._read_metrics()
        self._in_flight = metrics
        self.clock.add(tokens_BxL.size)
        self.host["step"] += 1
        self.host["position"] += rows
        self.host["tokens"] = self.clock.tokens

    def _read_metrics(self) -> None:
        """Waits for the step in flight and counts it."""
        if self._in_flight is None:
            return
        metrics = {name: np.asarray(x).item() for name, x in self._in_flight.items()}
        self._in_flight = None
        self.host["updates"] += metrics["updated"]
        if metrics["finite"]:
            self.host["window"].append(metrics["loss"])
        self.host["latest"] = {
            "learning_rate": metrics["learning_rate"],
            "grad_norm": metrics["grad_norm"],
            "batch_size": metrics["accumulate"] * self._config.micro_batch,
            "skipped": metrics["skipped"],
        }

    def _write_line(self) -> None:
        self._read_metrics()
        host, now = self.host, time.monotonic()
        if host["window"]:
            host["last_loss"] = math.fsum(host["window"]) / len(host["window"])
        host["window"] = []
        seconds = max(now - self._last_line, 1e-9)
        self._log.write(
            step=host["step"],
            updates=host["updates"],
            progress=self.clock.progress(),
            tokens=self.clock.tokens,
            elapsed_s=self.clock.elapsed_s,
            loss=host["last_loss"],
            tokens_per_s=(self.clock.tokens - self._line_tokens) / seconds,
            **host["latest"],
        )
        self._last_line, self._line_tokens = now, self.clock.tokens

    def _save(self) -> None:
        self._read_metrics()
        self.host["elapsed_s"] = self.clock.elapsed_s
        self._store.save(self.host["step"], self.state, self.host)
        self._last_save = time.monotonic()


def _summary(config, corpus, params, host) -> dict[str, Any]:
    flops = train_flops_per_token(config.model, config.objective.mask_rate)
    length = config.model.max_length
    return {
        "held_out_loss": held_out_loss(config, params, corpus.held_out),
        "unigram_entropy": corpus.manifest["unigram_entropy"],
        "train_loss": host["last_loss"],
        "tokens": host["tokens"],
        "passes": host["tokens"] / (len(corpus.train) * length),
        "micro_steps": host["step"],
        "updates": host["updates"],
        "elapsed_s": host["elapsed_s"],
        "tokens_per_s": host["tokens"] / host["elapsed_s"],
        "model_flops": host["tokens"] * flops,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "skipped": host["latest"]["skipped"],
        "device": jax.devices()[0].device_kind,
    }


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM while the block runs, instead of dying of them."""
    received: list[int] = []

    def note(number, frame):
        del frame
        received.append(number)
        print(f"{signal.Signals(number).name}: saving after this step ...", flush=True)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

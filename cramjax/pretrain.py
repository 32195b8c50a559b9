"""The host loop: one budget, one stream of blocks, one jitted micro-step."""

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cramjax import train_step
from cramjax.budget import BudgetClock
from cramjax.checkpoint import CheckpointStore, abstract
from cramjax.config import Config
from cramjax.data.corpus import Corpus
from cramjax.data.ordering import BlockStream
from cramjax.errors import Interrupted
from cramjax.flops import train_flops_per_token
from cramjax.metrics_log import MetricsLog
from cramjax.progress import Progress
from cramjax.validation import held_out_loss

SUMMARY = "pretrain.json"


def pretrain(
    config: Config, corpus: Corpus, workdir: Path
) -> tuple[Any, dict[str, Any]]:
    """Trains for the budget, or for what is left of it, and validates.

    Writes checkpoints/, metrics.jsonl and pretrain.json in the workdir. A finished run
    is read back, not repeated.

    Returns:
      The float32 parameters of `model.MaskedLM`, and the summary of pretrain.json.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    mesh = train_step.make_mesh()
    with (
        CheckpointStore(workdir / "checkpoints", config.checkpoint) as store,
        MetricsLog(workdir / "metrics.jsonl") as log,
    ):
        state, host = _resume_or_start(config, mesh, store, log)
        if not host["finished"]:
            state, host = _train(config, corpus, mesh, store, log, state, host)
        summary_path = workdir / SUMMARY
        if not summary_path.exists():
            summary = _summary(config, corpus, state.params, host)
            _write_json(summary_path, summary)
    return state.params, json.loads(summary_path.read_text())


def _resume_or_start(config, mesh, store, log):
    make = lambda: train_step.init_state(config)  # noqa: E731
    sharding = train_step.replicated(mesh)
    step = store.latest_step()
    if step is None:
        log.cut(0)
        state = jax.jit(make, out_shardings=sharding)()
        host = {
            "step": 0,
            "updates": 0,
            "position": 0,
            "tokens": 0,
            "elapsed_s": 0.0,
            "window": [],
            "last_loss": None,
            "finished": False,
        }
        return state, host
    state = store.state(step, abstract(make, sharding))
    host = store.host(step)
    if not host["finished"]:
        # Work lost since the checkpoint is charged to a wall-clock budget.
        host["elapsed_s"] = max(host["elapsed_s"], log.last_elapsed_s())
        log.cut(step)
        log.write(event="resumed", step=step, elapsed_s=host["elapsed_s"])
    return state, host


def _train(config, corpus, mesh, store, log, state, host):
    """Runs micro-steps until the budget is used or a signal comes."""
    micro_step = train_step.make_micro_step(config, mesh)
    stream = BlockStream(corpus, config.data.order, config.seed)
    rows, length = config.micro_batch, config.model.max_length
    clock = BudgetClock(
        config.budget,
        train_flops_per_token(config.model, config.objective.mask_rate),
        elapsed_s=host["elapsed_s"],
        tokens=host["tokens"],
    )
    host = dict(host)
    pending: dict[str, jax.Array] | None = None

    def read_pending() -> None:
        nonlocal pending
        if pending is None:
            return
        metrics = {name: np.asarray(x).item() for name, x in pending.items()}
        pending = None
        host["updates"] += metrics["updated"]
        if metrics["finite"]:
            host["window"].append(metrics["loss"])
        host["latest"] = {
            "learning_rate": metrics["learning_rate"],
            "grad_norm": metrics["grad_norm"],
            "batch_size": metrics["accumulate"] * rows,
            "skipped": metrics["skipped"],
        }

    def save(finished: bool) -> None:
        read_pending()
        host["elapsed_s"], host["finished"] = clock.elapsed_s, finished
        store.save(host["step"], state, host)

    def write_line(tokens_per_s: float) -> None:
        if host["window"]:
            host["last_loss"] = math.fsum(host["window"]) / len(host["window"])
        host["window"] = []
        log.write(
            step=host["step"],
            updates=host["updates"],
            progress=clock.progress(),
            tokens=clock.tokens,
            elapsed_s=clock.elapsed_s,
            loss=host["last_loss"],
            tokens_per_s=tokens_per_s,
            **host.get("latest", {}),
        )

    last_save = last_line = time.monotonic()
    line_tokens = clock.tokens
    with _stop_signals() as stop, Progress(config.budget) as progress:
        while (used := clock.progress()) < 1 and not stop:
            tokens_BxL = stream.batch(host["position"], rows)
            state, metrics = micro_step(state, tokens_BxL, np.float32(used))
            # The device works on this step while the host reads the one before it: it
            # never waits for the host, and the clock runs at most one step ahead of it.
            read_pending()
            pending = metrics
            clock.add(rows * length)
            host["step"] += 1
            host["position"] += rows
            host["tokens"] = clock.tokens
            progress.update(clock, host)
            if host["step"] % config.log.every_steps == 0:
                now = time.monotonic()
                write_line((clock.tokens - line_tokens) / (now - last_line))
                last_line, line_tokens = now, clock.tokens
            if time.monotonic() - last_save > config.checkpoint.every_minutes * 60:
                save(finished=False)
                last_save = time.monotonic()
        read_pending()
        finished = clock.progress() >= 1
        if finished:
            seconds = max(time.monotonic() - last_line, 1e-9)
            write_line((clock.tokens - line_tokens) / seconds)
        save(finished)
    if not finished:
        raise Interrupted(
            f"stopped by {signal.Signals(stop[0]).name} after {clock.tokens:,} tokens "
            f"({clock.progress():.1%} of the budget); the same command goes on from "
            "here",
            stop[0],
        )
    return state, host


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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.replace(path)

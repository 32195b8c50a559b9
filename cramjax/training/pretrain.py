"""Pretraining as a stage: start or resume, train for the budget, score, summarize."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax

from cramjax import files, word_order
from cramjax.config import Config
from cramjax.data.corpus import Corpus
from cramjax.device import distributed, host_memory, monitor
from cramjax.device.compile import MicroStep, abstract
from cramjax.errors import Interrupted, UserError, is_out_of_memory
from cramjax.training import averaging, train_step
from cramjax.training import log as metrics_log
from cramjax.training.checkpoint import CheckpointStore
from cramjax.training.clock import Clock
from cramjax.training.log import MetricsLog, Throughput, TrainMetrics
from cramjax.training.loop import RESUMED, ROLLED_BACK, Session, restore_or_init, train
from cramjax.training.validation import score
from cramjax.version import code_version, command_line, library_versions

# In the workdir; the summary exists if and only if pretraining is finished.
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
SUMMARY = "pretrain.json"


def pretrain(
    config: Config,
    corpus: Corpus,
    workdir: Path,
    compiling: Future[MicroStep] | None = None,
    started_at: float | None = None,
    initial_params: Any | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains for the budget, or for what is left of it, and validates.

    Writes checkpoints/, metrics.jsonl and, at the end, pretrain.json in the workdir.

    Args:
      corpus: to train and to validate on.
      compiling: the micro-step, being compiled; without it the first step compiles.
      started_at: `time.monotonic()` when it began to prepare; now if it is left out.
      initial_params: of `encoder.MaskedLM`, to begin with; random ones without.

    Returns:
      Float32 parameters of `encoder.MaskedLM` by name ("pretrained", and the averages
      that are on), and the summary of pretrain.json.

    Raises:
      Interrupted: SIGINT or SIGTERM arrived; the state is saved.
      TrainingFailed: see `loop.train`.
      UserError: the device has too little memory.
    """
    started_at = time.monotonic() if started_at is None else started_at
    first = distributed.is_first()
    with (
        out_of_memory_explained(config),
        CheckpointStore(workdir / CHECKPOINTS, config.checkpoint) as store,
        MetricsLog(workdir / METRICS if first else Path(os.devnull)) as log,
        distributed.peers_watched(),
    ):
        session = resume(
            *(config, corpus, store, log, workdir, compiling, started_at),
            initial_params,
        )
        clock = session.clock
        stopped_by = train(session)
        if stopped_by is not None:
            raise Interrupted(
                f"stopped by {signal.Signals(stopped_by).name} after "
                f"{clock.tokens:,} tokens ({clock.progress():.1%} of the budget); the "
                "same command goes on from here",
                stopped_by,
            )
        if not clock.tokens:
            raise UserError(
                f"--workdir={workdir}: all of the budget went to work that was lost, "
                "nothing is trained; pass another --workdir"
            )
        with clock.measure("validation"):
            named_params = train_step.named_params(config, session.state)
            scores = score(config, named_params, corpus)
            scores["word_order"] = word_order.score(
                config, named_params["pretrained"], corpus
            )
        summary = _summary(session, scores)
    if first:
        files.write_record(workdir / SUMMARY, summary)
    return named_params, summary


def resume(
    config: Config,
    corpus: Corpus,
    store: CheckpointStore,
    log: MetricsLog,
    workdir: Path,
    compiling: Future[MicroStep] | None,
    started_at: float,
    initial_params: Any | None = None,
) -> Session:
    """Returns a session that continues from the last checkpoint, or a new one.

    Work done after the checkpoint is charged: a crash gains no time.

    Raises:
      UserError: the step is too large for the host's memory.
    """
    lines = metrics_log.read(workdir / METRICS)
    rollbacks = sum(line.get("event") == ROLLED_BACK for line in lines)
    initial = {"initial_params": initial_params}
    micro_step = dataclasses.replace(train_step.build(config), **initial)
    state, saved = restore_or_init(micro_step, store, rollbacks)
    clock, energy_kwh = Clock(config.budget, saved), saved.get("energy_kwh")
    if jax.process_count() > 1:
        clock.agreed = clock.progress()
    if lines:
        logged_s = max(line.get("elapsed_s", 0.0) for line in lines)
        clock.add_seconds("lost", max(logged_s - clock.elapsed_s, 0.0))
        idle_s = max(line.get("idle_s", 0.0) for line in lines)
        idle_s = max(idle_s - clock.seconds["idle"], 0.0)
        since_s = time.time() - lines[-1].get("time", time.time())
        clock.add_seconds("idle", idle_s + max(since_s, 0.0))
        drawn = (energy_kwh, *(line.get("energy_kwh") for line in lines))
        energy_kwh = max((kwh for kwh in drawn if kwh is not None), default=None)
        log.cut(
            clock.step,
            event=RESUMED,
            step=clock.step,
            elapsed_s=clock.elapsed_s,
            energy_kwh=energy_kwh,
            idle_s=clock.seconds["idle"],
        )
    if compiling:
        micro_step = dataclasses.replace(compiling.result(), **initial)
    limit, needed = host_memory.limit_bytes(), micro_step.needed_bytes
    if jax.default_backend() == "cpu" and needed > limit:
        # A GPU reports that by itself; here the system would silently kill the process.
        raise _too_large(
            config,
            f"the training step needs {needed / 1e9:.1f} GB, and there are "
            f"{limit / 1e9:.1f}",
        )
    clock.restart()
    compiled_before_s = clock.seconds["compilation"]
    # All of it, even if the corpus was checked at the same time.
    clock.add_seconds("compilation", micro_step.compile_s)
    return Session(
        config=config,
        corpus=corpus,
        workdir=workdir,
        store=store,
        log=log,
        micro_step=micro_step,
        state=state,
        clock=clock,
        train_metrics=TrainMetrics.restored(saved),
        throughput=Throughput(clock, energy_kwh),
        started_at=started_at,
        compiled_before_s=compiled_before_s,
        rollbacks=rollbacks,
    )


@contextlib.contextmanager
def out_of_memory_explained(config: Config) -> Iterator[None]:
    """Raises `UserError` if the block runs out of the device's memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        card = jax.devices()[0].device_kind
        raise _too_large(config, f"too much for the memory of {card}") from error


def _too_large(config: Config, why: str) -> UserError:
    return UserError(
        f"config.micro_batch is {config.micro_batch}: {why}; pass a smaller one (0: "
        "the largest that fits), or a smaller model, and another --workdir"
    )


def read_back(config: Config, workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what `pretrain` returned when it finished in this workdir.

    Raises:
      UserError: its files are missing or damaged.
    """
    summary = files.read_json(workdir / SUMMARY, "delete it to make it again")
    return read_checkpoint(config, workdir), summary


def read_checkpoint(
    config: Config, workdir: Path, step: int | None = None
) -> dict[str, Any]:
    """Returns a checkpoint's parameters by name: by default the finished run's.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """

    def scored() -> dict[str, Any]:
        state = train_step.init_state(config)
        if not config.averaging.names:  # earlier versions did not even store the count
            return {"params": state.params}
        kept = {k: v for k, v in vars(state.averages).items() if v is not None}
        return {"params": state.params, "averages": kept}

    with CheckpointStore(workdir / CHECKPOINTS, config.checkpoint) as store:
        steps = store.steps()
        if step is not None and step not in steps:
            kept = ", ".join(map(str, steps)) or "none"
            raise UserError(
                f"step={step}: no such checkpoint in {workdir / CHECKPOINTS}, which "
                f"has those of the steps: {kept}"
            )
        if not steps:
            raise UserError(
                f"{workdir / SUMMARY} says that pretraining is finished, but there is "
                f"no checkpoint beside it: bring {workdir / CHECKPOINTS} back, or "
                "delete the file to train again"
            )
        replicated = train_step.replicated(train_step.make_mesh())
        found = store.parts(step or steps[-1], abstract(scored, replicated))
    named_params = {"pretrained": found["params"]}
    if "averages" in found:
        averages = averaging.Averages(**found["averages"])
        named_params |= averaging.read(config.averaging, averages, found["params"])
    return named_params


def _summary(session: Session, scores: dict[str, Any]) -> dict[str, Any]:
    clock, latest = session.clock, session.train_metrics.latest
    elapsed_s = clock.elapsed_s
    return {
        "held_out_loss": scores["loss"],
        "held_out_accuracy": scores["accuracy"],
        "bits_per_byte": scores["bits_per_byte"],
        "averages": scores["averages"],
        "word_order": scores["word_order"],
        "unigram_entropy": session.corpus.manifest["unigram_entropy"],
        "train_loss": session.train_metrics.last_loss,
        "tokens": clock.tokens,
        "passes": clock.position / len(session.corpus.train),
        "micro_steps": clock.step,
        "updates": clock.updates,
        "elapsed_s": elapsed_s,
        "first_step_s": session.first_step_s,
        "seconds": clock.seconds,
        "tokens_per_s": clock.tokens / elapsed_s,
        "model_flops": clock.flops,
        "mfu": monitor.mfu(clock.flops, elapsed_s),
        "peak_memory_bytes": monitor.peak_memory_bytes(),
        "energy_kwh": session.throughput.energy_kwh,
        "parameters": sum(x.size for x in jax.tree.leaves(session.state.params)),
        "skipped": latest["skipped"],
        "device": jax.devices()[0].device_kind,
        "devices": distributed.devices(),
        "code": code_version(),
        "versions": library_versions(),
        "command": command_line(),
    }

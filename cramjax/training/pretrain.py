"""Pretraining as a stage: start or resume, train for the budget, score, summarize."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from cramjax import files, word_order
from cramjax.config import Config
from cramjax.data.corpus import Corpus
from cramjax.device import host_memory, monitor
from cramjax.device.compile import Ahead, MicroStep, abstract
from cramjax.device.monitor import Throughput
from cramjax.errors import Interrupted, UserError, is_out_of_memory
from cramjax.training import averaging, train_step
from cramjax.training import log as metrics_log
from cramjax.training.checkpoint import CheckpointStore
from cramjax.training.clock import Clock
from cramjax.training.log import MetricsLog, Readings
from cramjax.training.loop import RESUMED, STEPPED_BACK, Session, restore_or_init, train
from cramjax.training.validation import score
from cramjax.version import code_version, command_line, library_versions

# In the workdir; the summary exists if and only if pretraining is finished.
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
SUMMARY = "pretrain.json"


def pretrain(
    config: Config, corpus: Corpus, workdir: Path, ahead: Ahead | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains for the budget, or for what is left of it, and validates.

    Writes checkpoints/, metrics.jsonl and, when all is done, pretrain.json in the
    workdir.

    Args:
      config: the run's.
      corpus: to train on.
      workdir: of the run.
      ahead: compiles the micro-step; without it the first step does.

    Returns:
      Float32 parameters of `encoder.MaskedLM` by name ("pretrained", and the averages
      that are on), and the summary of pretrain.json.

    Raises:
      Interrupted: SIGINT or SIGTERM came; the state is saved.
      TrainingFailed: the numbers are bad, or the loss too high; see `loop.train`.
      UserError: the device has too little memory.
    """
    with (
        out_of_memory_explained(config),
        CheckpointStore(workdir / CHECKPOINTS, config.checkpoint) as store,
        MetricsLog(workdir / METRICS) as log,
    ):
        session = resume(config, corpus, store, log, workdir, ahead)
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
            weights = train_step.weights(config, session.state)
            scores = score(config, weights, corpus)
            scores["word_order"] = word_order.score(
                config, weights["pretrained"], corpus
            )
        summary = _summary(session, scores)
    files.write_json(workdir / SUMMARY, summary)
    return weights, summary


def resume(
    config: Config,
    corpus: Corpus,
    store: CheckpointStore,
    log: MetricsLog,
    workdir: Path,
    ahead: Ahead | None = None,
) -> Session:
    """Returns a session that goes on from the last checkpoint, or a fresh one.

    Whatever was done after the checkpoint is charged: a crash gains no time.
    """
    lines = metrics_log.read(workdir / METRICS)
    steps_back = sum(line.get("event") == STEPPED_BACK for line in lines)
    state, saved = restore_or_init(config, store, steps_back)
    clock, energy_kwh = Clock(config.budget, saved), saved.get("energy_kwh")
    if lines:
        logged_s = max(line.get("elapsed_s", 0.0) for line in lines)
        clock.charge("lost", max(logged_s - clock.elapsed_s, 0.0))
        idle_s = max(line.get("idle_s", 0.0) for line in lines)
        idle_s = max(idle_s - clock.seconds["idle"], 0.0)
        since_s = time.time() - lines[-1].get("time", time.time())
        clock.charge("idle", idle_s + max(since_s, 0.0))
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
    step = ahead.result() if ahead else train_step.build(config)
    check_memory(config, step)
    clock.restart()
    # All of it, although the corpus may have been checked at the same time.
    clock.charge("compilation", step.compile_s)
    return Session(
        config,
        corpus,
        workdir,
        store,
        log,
        step,
        state,
        clock,
        Readings.restored(saved),
        Throughput(clock, energy_kwh),
        steps_back,
    )


def check_memory(config: Config, step: MicroStep) -> None:
    """Refuses a step that is too large for the host's memory.

    A GPU says so by itself; on a CPU the system kills the process silently.

    Raises:
      UserError: it is.
    """
    there = host_memory.limit_bytes()
    if jax.default_backend() == "cpu" and step.needed_bytes > there:
        raise UserError(
            f"config.micro_batch is {config.micro_batch}: the training step needs "
            f"{step.needed_bytes / 1e9:.1f} GB, and there are {there / 1e9:.1f}; pass "
            "a smaller one (0: the largest that fits), or a smaller model, and another "
            "--workdir"
        )


@contextlib.contextmanager
def out_of_memory_explained(config: Config) -> Iterator[None]:
    """Makes a `UserError` of the device's memory being full in the block."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"config.micro_batch is {config.micro_batch}: too much for the memory of "
            f"{jax.devices()[0].device_kind}; pass a smaller one (0: the largest that "
            "fits), or a smaller model, and another --workdir"
        ) from error


def read_back(config: Config, workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what `pretrain` returned when it finished in this workdir.

    Raises:
      UserError: its files are gone or damaged.
    """
    with CheckpointStore(workdir / CHECKPOINTS, config.checkpoint) as store:
        step = store.latest_step()
        if step is None:
            raise UserError(
                f"{workdir / SUMMARY} says that pretraining is finished, but there is "
                f"no checkpoint beside it: bring {workdir / CHECKPOINTS} back, or "
                "delete the file to train again"
            )
        replicated = train_step.replicated(train_step.make_mesh())
        found = store.parts(step, abstract(lambda: _scored(config), replicated))
    params, averages = found["params"], {}
    if "averages" in found:
        kept = averaging.Averages(
            **{"ema": None, "snapshots": None} | found["averages"]
        )
        averages = averaging.read(config.averaging, kept, params)
    summary = files.read_json(workdir / SUMMARY, "delete it to make it again")
    return {"pretrained": params, **averages}, summary


def _scored(config: Config) -> dict[str, Any]:
    """Returns the parts of a fresh state from which weights are scored.

    Earlier versions stored no averages: they are left out if the config has none.
    """
    state = train_step.init_state(config)
    if not config.averaging.names:
        return {"params": state.params}
    kept = {k: v for k, v in vars(state.averages).items() if v is not None}
    return {"params": state.params, "averages": kept}


def _summary(session: Session, scores: dict[str, Any]) -> dict[str, Any]:
    clock, blocks = session.clock, session.corpus.train
    elapsed_s = clock.elapsed_s
    return {
        "held_out_loss": scores["loss"],
        "held_out_accuracy": scores["accuracy"],
        "bits_per_byte": scores["bits_per_byte"],
        "averages": scores["averages"],
        "word_order": scores["word_order"],
        "unigram_entropy": session.corpus.manifest["unigram_entropy"],
        "train_loss": session.readings.last_loss,
        "tokens": clock.tokens,
        "passes": clock.position / len(blocks),
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
        "skipped": session.readings.latest["skipped"],
        "device": jax.devices()[0].device_kind,
        "code": code_version(),
        "versions": library_versions(),
        "command": command_line(),
    }

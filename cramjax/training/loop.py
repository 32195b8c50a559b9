"""The host's loop: one clock, one stream of blocks, one jitted micro-step."""

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config import Config
from cramjax.data.corpus import Corpus
from cramjax.data.order import BlockStream
from cramjax.device import distributed
from cramjax.device.compile import MicroStep, Requests, abstract
from cramjax.errors import TrainingFailed
from cramjax.model.flops import train_flops_per_token
from cramjax.progress import Stage
from cramjax.training import schedules, train_step
from cramjax.training.checkpoint import CheckpointStore
from cramjax.training.clock import Clock
from cramjax.training.log import MetricsLog, Throughput, TrainMetrics, progress_text
from cramjax.training.validation import score

logger = logging.getLogger(__name__)

# Events of metrics.jsonl.
ROLLED_BACK = "stepped_back"
RESUMED = "resumed"
FIRST_STEP = "first_step"


class DispatchedStep(NamedTuple):
    """A micro-step handed to the device, and the clock's values before it."""

    step: int
    position: int
    progress: float
    metrics: dict[str, jax.Array]


@dataclasses.dataclass
class Session:
    """What one process reads and changes while it trains."""

    config: Config
    corpus: Corpus
    workdir: Path  # a batch whose gradients are not finite goes there
    store: CheckpointStore
    log: MetricsLog
    micro_step: MicroStep
    state: train_step.TrainState
    clock: Clock
    train_metrics: TrainMetrics
    throughput: Throughput
    started_at: float  # `time.monotonic()` when this session began to prepare
    compiled_before_s: float = 0.0  # seconds of compilation in earlier sessions
    rollbacks: int = 0  # to an earlier checkpoint, in all sessions
    last_read: DispatchedStep | None = None  # the latest one of this session
    first_step_s: float | None = None  # from `started_at` to the end of the first step
    agreed: Requests = Requests()  # by all processes, and not done yet
    stream: BlockStream = dataclasses.field(init=False)
    # Of the micro-batches that the micro-step is compiled for.
    compiled_shapes: set[tuple[int, int]] = dataclasses.field(init=False)

    def __post_init__(self):
        config, step = self.config, self.micro_step
        self.stream = BlockStream(self.corpus, config.data.order, config.seed)
        self.compiled_shapes = {step.block_shape} if step.compile_s else set()


def train(session: Session) -> int | None:
    """Steps until the budget is spent (None), or a signal arrives (its number).

    When it returns the state is on disk. A second signal is ignored, unless a full disk
    makes the last checkpoint wait.

    Raises:
      TrainingFailed: gradients are not finite again after a rollback, or the loss is
        too high.
      UserError: the disk is full or fails, and the user does not wait.
    """
    config, clock, store = session.config, session.clock, session.store
    every = (config.checkpoint.every_minutes, config.validation.every_minutes)
    timers = [Timer(minutes * distributed.is_first()) for minutes in every]
    in_flight = None
    with (
        stop_signals() as signals,
        Stage("pretraining") as stage,
        contextlib.ExitStack() as trace,
    ):
        while (progress := clock.progress()) < 1:
            requests = request(session, progress, signals, timers)
            if session.agreed.stop:
                break
            # Except when logging, validating or saving, the device runs this step while
            # the host reads the previous one.
            if clock.step in config.profile.steps:
                read_metrics(session, in_flight)  # the trace has whole steps
                in_flight = None
                switch_trace(session, trace)
            previous, in_flight = in_flight, dispatch(session, progress, requests)
            read_metrics(session, previous)
            # Logged before the last checkpoint, so that resuming from it does not log
            # the same steps again.
            logs = clock.step % config.log.every_steps == 0 or clock.progress() >= 1
            saves, validates = session.agreed.save, session.agreed.validate
            session.agreed = session.agreed._replace(save=0, validate=0)
            if logs or validates or saves:
                read_metrics(session, in_flight)
                in_flight = None
            if session.first_step_s is None and session.last_read:
                note_first_step(session)
            stage.update(
                clock.progress(),
                progress_text(
                    clock,
                    session.train_metrics,
                    session.throughput.latest,
                    blocks=len(session.corpus.train),
                ),
            )
            if too_many_nonfinite(session):
                in_flight = None
                roll_back(session)
                continue
            if logs:
                write_line(session)
                check_loss(session)
            if validates:
                validate(session)
            if saves:
                save(session)
        read_metrics(session, in_flight)
        finished = clock.progress() >= 1
        if finished and session.train_metrics.window:  # time was up after the last step
            write_line(session)
        state = session.micro_step.gather(session.state)
        store.save_at_last(state, lambda: host_state(session), clock, signals)
        if not finished:  # after the last write, which is charged, too
            write_event(session, "stopped")
    return signals[0] if signals else int(session.agreed.stop) or None


def request(
    session: Session, progress: float, signals: list[int], timers: list["Timer"]
) -> Requests:
    """Returns what this process asks all to do.

    One process does it at once. Several agree on it in the next micro-step: they must
    stop, save and validate after the same one.
    """
    if jax.process_count() > 1:
        progress = session.clock.measured() * distributed.is_first()
    stop = signals[0] if signals else 0
    asked = Requests(progress, stop, *(timer.is_due() for timer in timers))
    if jax.process_count() == 1:
        session.agreed = asked
    return asked


class Timer:
    """Is due every so many minutes; never if these are 0."""

    def __init__(self, every_minutes: float):
        """Starts now."""
        self._every_s, self._start = 60 * every_minutes, time.monotonic()

    def is_due(self) -> bool:
        """Returns whether the time has passed; if so, starts again."""
        now = time.monotonic()
        due = 0 < self._every_s < now - self._start
        if due:
            self._start = now
        return due


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in the block instead of ending the process.

    A closed terminal sends SIGHUP; under `nohup` it stays ignored.
    """
    received: list[int] = []

    def note(number, frame):
        del frame
        received.append(number)
        # Not `print`, which the signal may have interrupted; and stderr may be closed.
        with contextlib.suppress(OSError):
            os.write(2, f"{signal.Signals(number).name}: stopping ...\n".encode())

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def switch_trace(session: Session, trace: contextlib.ExitStack) -> None:
    """Writes the trace that has begun, if any; begins one at its first step."""
    trace.close()
    if session.clock.step == session.config.profile.steps[0]:
        folder = session.workdir / "profile"
        found = f"{folder}/plugins/profile/*/perfetto_trace.json.gz"
        trace.callback(logger.info, f"trace: {found}, for https://ui.perfetto.dev")
        trace.enter_context(jax.profiler.trace(folder, create_perfetto_trace=True))


def dispatch(session: Session, progress: float, requests: Requests) -> DispatchedStep:
    """Hands the next micro-step to the device, and counts it."""
    config, clock, count = session.config, session.clock, jax.process_count()
    blocks = config.micro_batch // count  # of this process
    first = clock.position + jax.process_index() * blocks
    tokens_BxL = micro_batch_at(session, first, blocks, progress)
    rows, length = count * tokens_BxL.shape[0], tokens_BxL.shape[1]
    compiles = (rows, length) not in session.compiled_shapes
    session.compiled_shapes.add((rows, length))
    with clock.measure("compilation" if compiles else "training"):
        session.state, metrics = session.micro_step.function(
            session.state, *session.micro_step.inputs(tokens_BxL, requests)
        )
    step = DispatchedStep(clock.step, clock.position, progress, metrics)
    rate = config.objective.max_mask_rate
    flops_per_token = train_flops_per_token(config.model, rate, length)
    clock.advance(config.micro_batch, rows * length, rows * length * flops_per_token)
    return step


def micro_batch_at(
    session: Session, position: int, blocks: int, progress: float
) -> np.ndarray:
    """Returns tokens_BxL: blocks from `position` on, cut as the curriculum demands."""
    blocks_BxL = session.stream.take(position, blocks)
    stages = session.config.curriculum
    length = schedules.sequence_length(progress, stages, blocks_BxL.shape[1])
    if stages.unfold:  # every block becomes several rows
        return blocks_BxL.reshape(-1, length)
    return blocks_BxL[:, :length]  # the rest of the block is dropped


def read_metrics(session: Session, step: DispatchedStep | None) -> None:
    """Waits for a micro-step, if there is one, and records what it reports."""
    if step is None:
        return
    metrics = {name: np.asarray(x).tolist() for name, x in step.metrics.items()}
    if agreed_R := metrics.get("agreed_R"):
        session.agreed = Requests(*map(max, session.agreed, agreed_R))
        session.clock.agreed = session.agreed.progress
    session.last_read = step
    session.clock.updates += metrics["updated"]
    if metrics["finite"]:
        session.train_metrics.window.append(metrics["loss"])
    session.train_metrics.latest = {
        "learning_rate": metrics["learning_rate"],
        "grad_norm": metrics["grad_norm"],
        "batch_size": metrics["accumulate"] * session.config.micro_batch,
        "skipped": metrics["skipped"],
        "bad_in_a_row": metrics["bad_in_a_row"],
    }


def write_event(session: Session, event: str, **values: Any) -> None:
    """Writes an event to metrics.jsonl, with the step and the time."""
    step, elapsed_s = session.clock.step, session.clock.elapsed_s
    session.log.write(event=event, step=step, elapsed_s=elapsed_s, **values)


def note_first_step(session: Session) -> None:
    """Reports how long it took until the session's first step was done."""
    first_step_s = session.first_step_s = time.monotonic() - session.started_at
    compile_s = session.clock.seconds["compilation"] - session.compiled_before_s
    logger.info(
        f"first step after {first_step_s:.1f} s, {compile_s:.1f} s of compilation"
    )
    write_event(session, FIRST_STEP, first_step_s=first_step_s, compile_s=compile_s)


def write_line(session: Session) -> None:
    """Writes a line of measurements."""
    clock, metrics = session.clock, session.train_metrics
    metrics.last_loss, metrics.window = metrics.loss, []
    session.log.write(
        step=clock.step,
        updates=clock.updates,
        progress=clock.progress(),
        tokens=clock.tokens,
        elapsed_s=clock.elapsed_s,
        loss=metrics.last_loss,
        **session.throughput.line(),
        **metrics.latest,
    )


def validate(session: Session) -> None:
    """Scores the weights on held-out text."""
    clock, corpus = session.clock, session.corpus
    with clock.measure("validation"):
        named_params = train_step.named_params(session.config, session.state)
        scores = score(session.config, named_params, corpus)
    session.train_metrics.held_out_loss = scores["loss"]
    write_event(session, "validation", tokens=clock.tokens, **scores)
    logger.info(
        f"held-out loss {scores['loss']:.3f} nats (unigram entropy: "
        f"{corpus.manifest['unigram_entropy']:.3f}) after {clock.tokens:,} tokens, "
        f"{clock.progress():.1%} of the budget"
    )


def save(session: Session) -> None:
    """Writes a checkpoint, unless the disk is full."""
    with session.clock.measure("checkpoints"):
        state = session.micro_step.gather(session.state)
        session.store.save(session.clock.step, state, host_state(session))


def host_state(session: Session) -> dict[str, Any]:
    """Returns the host's part of a checkpoint, as JSON values."""
    return {
        **session.clock.saved(),
        **dataclasses.asdict(session.train_metrics),
        "energy_kwh": session.throughput.energy_kwh,
    }


def check_loss(session: Session) -> None:
    """Stops a run that does not learn."""
    guard, loss = session.config.guard, session.train_metrics.last_loss
    progress = session.clock.progress()
    if not guard.max_loss or progress < guard.max_loss_after:
        return
    if loss is not None and loss > guard.max_loss:
        save(session)
        raise TrainingFailed(
            f"the training loss is {loss:.2f} after {progress:.1%} of the budget, "
            f"above config.guard.max_loss={guard.max_loss:g}: try a lower "
            "--config.optimizer.learning_rate in another --workdir, or raise the limit "
            "(0 = none)"
        )


def too_many_nonfinite(session: Session) -> bool:
    """Returns whether too many micro-steps in a row had gradients that are not finite.

    Earlier sessions' steps do not count, so that a run stopped there can be resumed.
    """
    bad = session.train_metrics.latest["bad_in_a_row"]
    return bool(session.last_read) and bad >= session.config.guard.max_bad_steps


def roll_back(session: Session) -> None:
    """Goes back to the last checkpoint with a lower learning rate, once.

    Raises:
      TrainingFailed: it did so before.
    """
    config, clock, last = session.config, session.clock, session.last_read
    dump = session.workdir / f"bad_batch-{last.step}.npz"
    rows = config.micro_batch
    tokens_BxL = micro_batch_at(session, last.position, rows, last.progress)
    where = {"step": last.step, "position": last.position, "used": last.progress}
    if distributed.is_first():
        np.savez(dump, tokens=tokens_BxL, **where)
    why = (
        f"{session.train_metrics.latest['bad_in_a_row']} micro-batches in a row had "
        f"gradients that are not finite, the last one is in {dump}"
    )
    if session.rollbacks:
        raise TrainingFailed(
            f"{why}; the learning rate was already lowered once: pass a lower "
            "--config.optimizer.learning_rate and another --workdir"
        )
    session.rollbacks += 1
    session.store.wait()
    state, saved = restore_or_init(session.micro_step, session.store, session.rollbacks)
    session.state = state.replace(bad_in_a_row=jnp.zeros_like(state.bad_in_a_row))
    session.train_metrics = TrainMetrics.restored(saved)
    session.train_metrics.latest["bad_in_a_row"] = 0
    session.last_read = None
    clock.roll_back(saved)
    session.throughput.restart()
    session.log.cut(
        clock.step,
        event=ROLLED_BACK,
        step=clock.step,
        elapsed_s=clock.elapsed_s,
        energy_kwh=session.throughput.energy_kwh,
        why=why,
    )
    logger.warning(
        f"{why}: going on from step {clock.step} with the learning rate times "
        f"{config.guard.rate_factor:g}"
    )


def restore_or_init(
    micro_step: MicroStep, store: CheckpointStore, rollbacks: int
) -> tuple[train_step.TrainState, dict[str, Any]]:
    """Returns the latest checkpoint's state and `host_state`, or a new state and {}.

    Each of the `rollbacks` lowers the learning rate by `guard.rate_factor`.
    """
    step, sharding = store.latest_step(), micro_step.sharding
    if step is None:
        state, saved = micro_step.fresh_state(), {}
    else:
        state, saved = store.restore(step, abstract(micro_step.init_state, sharding))
        state = micro_step.spread(state)
    # The checkpoint may have been written before a rollback.
    scale = np.float32(micro_step.config.guard.rate_factor**rollbacks)
    return state.replace(rate_scale=jax.device_put(scale, sharding)), saved

"""The host's loop: one clock, one stream of blocks, one jitted micro-step."""

import contextlib
import dataclasses
import functools
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
from cramjax.device.compile import MicroStep, abstract
from cramjax.device.monitor import Throughput
from cramjax.errors import TrainingFailed
from cramjax.model.flops import train_flops_per_token
from cramjax.training import schedules, train_step
from cramjax.training.checkpoint import CheckpointStore
from cramjax.training.clock import Clock
from cramjax.training.log import MetricsLog, ProgressLine, Readings
from cramjax.training.validation import score

logger = logging.getLogger(__name__)

# Events of metrics.jsonl.
STEPPED_BACK = "stepped_back"
RESUMED = "resumed"
FIRST_STEP = "first_step"


class Step(NamedTuple):
    """A micro-step on the device, and the budget that was spent before it."""

    step: int
    position: int
    used: float
    metrics: dict[str, jax.Array]


@dataclasses.dataclass
class Session:
    """What one process reads and changes while it trains.

    Attributes:
      config: of the run.
      corpus: to train and to validate on.
      workdir: of the run; a batch with bad numbers is written there.
      store: of the checkpoints.
      log: metrics.jsonl.
      micro_step: compiled for the batches of `micro_step.shapes`.
      state: a `train_step.TrainState` on the device.
      clock: the run's progress.
      readings: what the micro-steps reported.
      throughput: measures the time between two lines of the log.
      steps_back: how often training went back to a checkpoint.
      compiled: shapes of the batches that the micro-step is compiled for.
      last_read: the micro-step whose metrics were read last in this session.
      first_step_s: from `MicroStep.begun` to the end of this session's first step.
    """

    config: Config
    corpus: Corpus
    workdir: Path
    store: CheckpointStore
    log: MetricsLog
    micro_step: MicroStep
    state: train_step.TrainState
    clock: Clock
    readings: Readings
    throughput: Throughput
    steps_back: int = 0
    compiled: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    last_read: Step | None = None
    first_step_s: float | None = None

    @functools.cached_property
    def stream(self) -> BlockStream:
        """The training blocks, in the config's order."""
        return BlockStream(self.corpus, self.config.data.order, self.config.seed)


def train(session: Session) -> int | None:
    """Steps until the budget is spent (None), or a signal arrives (its number).

    When it returns the state is on disk: a second signal cannot prevent that.

    Raises:
      TrainingFailed: bad numbers again after a step back, or too high a loss.
      UserError: the disk is full, and the user does not wait for room.
    """
    config, clock, store = session.config, session.clock, session.store
    blocks = session.corpus.train
    line = ProgressLine(config.budget, len(blocks) * blocks.length)
    validation = Timer(config.validation.every_minutes)
    checkpoint = Timer(config.checkpoint.every_minutes)
    compiled_before_s = clock.seconds["compilation"] - session.micro_step.compile_s
    session.compiled |= session.micro_step.shapes
    in_flight = None
    with stop_signals() as signals, line:
        store.warn_if_full(session.state)
        while (used := clock.progress()) < 1 and not signals:
            # The device works on this step while the host reads the one before it: it
            # never waits for the host, and the host is at most one step ahead of it.
            previous, in_flight = in_flight, dispatch(session, used)
            read_metrics(session, previous)
            # The last line comes before the last checkpoint: resuming there adds none.
            logs = clock.step % config.log.every_steps == 0 or clock.progress() >= 1
            validates, saves = validation.is_due(), checkpoint.is_due()
            if logs or validates or saves:
                read_metrics(session, in_flight)
                in_flight = None
            if session.first_step_s is None and session.last_read:
                note_first_step(session, compiled_before_s)
            line.update(clock, session.readings, session.throughput.latest)
            if has_bad_numbers(session):
                in_flight = None
                step_back(session)
                continue
            if logs:
                write_line(session)
                check_loss(session)
            if validates:
                validate(session)
                validation.restart()
            if saves:
                save(session)
                checkpoint.restart()
        read_metrics(session, in_flight)
        finished = clock.progress() >= 1
        if finished and session.readings.window:  # time was up after the last step
            write_line(session)
        store.save_at_last(session.state, lambda: host_state(session), clock, signals)
        if not finished:  # the last write is charged, too
            event = {"step": clock.step, "elapsed_s": clock.elapsed_s}
            session.log.write(event="stopped", **event)
    return signals[0] if signals else None


class Timer:
    """Is due every so many minutes; never if these are 0."""

    def __init__(self, every_minutes: float):
        """Starts now."""
        self._every_s = 60 * every_minutes
        self.restart()

    def restart(self) -> None:
        """Starts again."""
        self._start = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether the time is over."""
        return 0 < self._every_s < time.monotonic() - self._start


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in the block instead of ending the process.

    A closed terminal sends SIGHUP; under `nohup` it is ignored, and stays so.
    """
    received: list[int] = []

    def note(number, frame):
        del frame
        received.append(number)
        # Not `print`, which the signal may have interrupted; and stderr may be closed.
        with contextlib.suppress(OSError):
            text = f"{signal.Signals(number).name}: stopping ...\n"
            os.write(2, text.encode())

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dispatch(session: Session, used: float) -> Step:
    """Hands the next micro-step to the device, and counts it."""
    config, clock = session.config, session.clock
    tokens_BxL = batch(session, clock.position, used)
    rows, length = tokens_BxL.shape
    compiles = (rows, length) not in session.compiled
    session.compiled.add((rows, length))
    with clock.measure("compilation" if compiles else "training"):
        session.state, metrics = session.micro_step.function(
            session.state, tokens_BxL, np.float32(used)
        )
    step = Step(clock.step, clock.position, used, metrics)
    rate = config.objective.max_mask_rate
    flops_per_token = train_flops_per_token(config.model, rate, length)
    clock.advance(config.micro_batch, rows * length, rows * length * flops_per_token)
    return step


def batch(session: Session, position: int, used: float) -> np.ndarray:
    """Returns tokens_BxL: blocks from a position on, as long as the curriculum says."""
    blocks_BxL = session.stream.batch(position, session.config.micro_batch)
    stages = session.config.curriculum
    length = schedules.sequence_length(used, stages, blocks_BxL.shape[1])
    return cut(blocks_BxL, length, stages.unfold)


def cut(blocks_BxL: np.ndarray, length: int, unfold: bool) -> np.ndarray:
    """Returns sequences of `length` tokens.

    Args:
      blocks_BxL: packed blocks.
      length: at most L; a divisor of L if unfolding.
      unfold: whether a block becomes L / length sequences, (B * L / length) x length,
        or its first `length` tokens are taken and the others lost, B x length.
    """
    return blocks_BxL.reshape(-1, length) if unfold else blocks_BxL[:, :length]


def read_metrics(session: Session, step: Step | None) -> None:
    """Waits for a micro-step, if there is one, and takes in what it reports."""
    if step is None:
        return
    metrics = {name: np.asarray(x).item() for name, x in step.metrics.items()}
    session.last_read = step
    session.clock.updates += metrics["updated"]
    if metrics["finite"]:
        session.readings.window.append(metrics["loss"])
    session.readings.latest = {
        "learning_rate": metrics["learning_rate"],
        "grad_norm": metrics["grad_norm"],
        "batch_size": metrics["accumulate"] * session.config.micro_batch,
        "skipped": metrics["skipped"],
        "bad_in_a_row": metrics["bad_in_a_row"],
    }


def note_first_step(session: Session, compiled_before_s: float) -> None:
    """Reports how long it took until the session's first step was done."""
    clock = session.clock
    session.first_step_s = time.monotonic() - session.micro_step.begun
    compile_s = clock.seconds["compilation"] - compiled_before_s
    logger.info(
        f"first step after {session.first_step_s:.1f} s, "
        f"{compile_s:.1f} s of compilation"
    )
    session.log.write(
        event=FIRST_STEP,
        step=clock.step,
        elapsed_s=clock.elapsed_s,
        first_step_s=session.first_step_s,
        compile_s=compile_s,
    )


def write_line(session: Session) -> None:
    """Writes a line of measurements."""
    clock = session.clock
    session.readings.close_window()
    session.log.write(
        step=clock.step,
        updates=clock.updates,
        progress=clock.progress(),
        tokens=clock.tokens,
        elapsed_s=clock.elapsed_s,
        loss=session.readings.last_loss,
        **session.throughput.line(clock),
        **session.readings.latest,
    )


def validate(session: Session) -> None:
    """Scores the weights on held-out text."""
    clock, corpus = session.clock, session.corpus
    with clock.measure("validation"):
        weights = train_step.weights(session.config, session.state)
        scores = score(session.config, weights, corpus)
    session.log.write(
        event="validation",
        step=clock.step,
        tokens=clock.tokens,
        elapsed_s=clock.elapsed_s,
        **scores,
    )
    logger.info(
        f"held-out loss {scores['loss']:.3f} nats (word frequencies alone: "
        f"{corpus.manifest['unigram_entropy']:.3f}) after {clock.tokens:,} tokens, "
        f"{clock.progress():.1%} of the budget"
    )


def save(session: Session) -> None:
    """Writes a checkpoint, unless the disk is full."""
    with session.clock.measure("checkpoints"):
        session.store.save(session.clock.step, session.state, host_state(session))


def host_state(session: Session) -> dict[str, Any]:
    """Returns what a checkpoint keeps beside the device's state, as JSON values."""
    return {
        **session.clock.saved(),
        **dataclasses.asdict(session.readings),
        "energy_kwh": session.throughput.energy_kwh,
    }


def check_loss(session: Session) -> None:
    """Stops a run that does not learn."""
    guard, loss = session.config.guard, session.readings.last_loss
    used = session.clock.progress()
    if not guard.max_loss or used < guard.max_loss_after:
        return
    if loss is not None and loss > guard.max_loss:
        save(session)
        raise TrainingFailed(
            f"the training loss is {loss:.2f} after {used:.1%} of the budget, above "
            f"config.guard.max_loss={guard.max_loss:g}: try a lower "
            "--config.optimizer.learning_rate in another --workdir, or raise the limit "
            "(0 = none)"
        )


def has_bad_numbers(session: Session) -> bool:
    """Returns whether too many micro-steps in a row had gradients that are not finite.

    Only those of this session count: a run that was stopped there can be resumed.
    """
    bad = session.readings.latest["bad_in_a_row"]
    return bool(session.last_read) and bad >= session.config.guard.max_bad_steps


def step_back(session: Session) -> None:
    """Goes back to the last checkpoint with a lower learning rate, once.

    Raises:
      TrainingFailed: it went back before.
    """
    config, clock, last = session.config, session.clock, session.last_read
    dump = session.workdir / f"bad_batch-{last.step}.npz"
    tokens_BxL = batch(session, last.position, last.used)
    np.savez(
        dump, tokens=tokens_BxL, step=last.step, position=last.position, used=last.used
    )
    why = (
        f"{session.readings.latest['bad_in_a_row']} micro-batches in a row had "
        f"gradients that are not finite, the last one is in {dump}"
    )
    if session.steps_back:
        raise TrainingFailed(
            f"{why}; the learning rate was already lowered once: pass a lower "
            "--config.optimizer.learning_rate and another --workdir"
        )
    session.steps_back += 1
    session.store.wait()
    state, saved = restore_or_init(config, session.store, session.steps_back)
    session.state = state.replace(bad_in_a_row=jnp.zeros_like(state.bad_in_a_row))
    session.readings = Readings.restored(saved)
    session.readings.latest["bad_in_a_row"] = 0
    session.last_read = None
    clock.go_back(saved)
    session.throughput.restart(clock)
    session.log.cut(
        clock.step,
        event=STEPPED_BACK,
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
    config: Config, store: CheckpointStore, steps_back: int
) -> tuple[train_step.TrainState, dict[str, Any]]:
    """Returns the newest checkpoint's state and `host_state`, or a fresh state and {}.

    Args:
      config: of the run.
      store: of the checkpoints.
      steps_back: how often training went back to a checkpoint because of bad numbers;
        each time lowers the learning rate by `guard.rate_factor`.
    """
    sharding = train_step.replicated(train_step.make_mesh())
    make = functools.partial(train_step.init_state, config)
    step = store.latest_step()
    if step is None:
        state, saved = jax.jit(make, out_shardings=sharding)(), {}
    else:
        state = store.state(step, abstract(make, sharding))
        saved = store.host(step)
    # The checkpoint may have been written before the step back.
    scale = jnp.float32(config.guard.rate_factor**steps_back)
    return state.replace(rate_scale=jax.device_put(scale, sharding)), saved

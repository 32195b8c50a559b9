"""The host loop: one budget, one stream of blocks, one jitted micro-step."""

import contextlib
import functools
import math
import signal
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config import Config
from cramjax.data.corpus import Corpus
from cramjax.data.order import BlockStream
from cramjax.device.compile import MicroStep, abstract
from cramjax.device.monitor import Throughput
from cramjax.errors import DiskFull, TrainingFailed, UserError
from cramjax.model.flops import train_flops_per_token
from cramjax.training import curriculum, train_step
from cramjax.training.budget import BudgetClock
from cramjax.training.checkpoint import CheckpointStore
from cramjax.training.counters import Counters
from cramjax.training.metrics_log import MetricsLog
from cramjax.training.progress import Progress
from cramjax.training.signals import stop_signals
from cramjax.training.validation import score

WAIT_S = 1.0  # between two looks at a disk that is full

# Events of metrics.jsonl.
STEPPED_BACK = "stepped_back"
RESUMED = "resumed"
FIRST_STEP = "first_step"


class _Place(NamedTuple):
    """Of a micro-step: its number, its first block, and the budget used before it."""

    step: int
    position: int
    used: float


class Loop:
    """The loop's moving parts: device state, host counters and the step in flight.

    Attributes:
      state: a `train_step.TrainState` on the device.
      counters: of the host, up to date after `run`.
      clock: the budget's.
      throughput: of the lines of metrics.jsonl.
      first_step_s: from `MicroStep.begun` to the end of this session's first
        step; None before that.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        store: CheckpointStore,
        log: MetricsLog,
        workdir: Path,
        state: train_step.TrainState,
        counters: Counters,
        steps_back: int,
        micro_step: MicroStep,
    ):
        """Takes up training where `state` and `counters` are; see `begin`."""
        self._config, self._corpus = config, corpus
        self._store, self._log, self._workdir = store, log, workdir
        self.state, self.counters = state, counters
        self._steps_back = steps_back
        self._micro_step, self._compiled = micro_step, set(micro_step.shapes)
        self._stream = BlockStream(corpus, config.data.order, config.seed)
        self.clock = BudgetClock(
            config.budget,
            seconds=counters.seconds,
            tokens=counters.tokens,
            flops=counters.flops,
        )
        # In whole, though it may have been done while the corpus was checked.
        self._compiled_before_s = self.clock.seconds["compilation"]
        self.clock.charge("compilation", micro_step.compile_s)
        self.first_step_s: float | None = None
        self._in_flight: tuple[_Place, dict[str, jax.Array]] | None = None
        self._read: _Place | None = None  # of the metrics read last
        self._last_save = self._last_validation = time.monotonic()
        self.throughput = Throughput(self.clock, counters.energy_kwh)

    def run(self) -> int | None:
        """Steps until the budget is used (None), or a signal comes (its number).

        When it returns the state is on disk: a second signal cannot prevent that.

        Raises:
          TrainingFailed: bad numbers again after a step back, or too high a loss.
          UserError: the disk is full, and nobody wants to wait for room.
        """
        log_every = self._config.log.every_steps
        blocks = self._corpus.train
        progress = Progress(self._config.budget, len(blocks) * blocks.length)
        with stop_signals() as stop, progress:
            try:
                self._store.check_room(self.state)
            except DiskFull as error:
                progress.say(f"{error}; going on, make room")
            while (used := self.clock.progress()) < 1 and not stop:
                self._step(used)
                if self.first_step_s is None and self._read is not None:
                    self._note_first_step(progress)
                progress.update(self.clock, self.counters, self.throughput.latest)
                self._check_numbers()
                if self.counters.step % log_every == 0:
                    self._write_line()
                    self._check_loss()
                if self._is_due(
                    self._last_validation, self._config.validation.every_minutes
                ):
                    self._validate(progress)
                if self._is_due(self._last_save, self._config.checkpoint.every_minutes):
                    self._save_if_it_fits()
            finished = self.clock.progress() >= 1
            if finished and self.counters.step % log_every:
                self._write_line()
            self._save_at_last(stop)
            if not finished:  # what the last write took is charged, too
                step, elapsed_s = self.counters.step, self.clock.elapsed_s
                self._log.write(event="stopped", step=step, elapsed_s=elapsed_s)
        return stop[0] if stop else None

    def _is_due(self, last: float, every_minutes: float) -> bool:
        return every_minutes > 0 and time.monotonic() - last > every_minutes * 60

    def _step(self, used: float) -> None:
        counters = self.counters
        tokens_BxL = self._batch(counters.position, used)
        compiles = tokens_BxL.shape not in self._compiled
        self._compiled.add(tokens_BxL.shape)
        with self.clock.measure("compilation" if compiles else "training"):
            self.state, metrics = self._micro_step.function(
                self.state, tokens_BxL, np.float32(used)
            )
        # The device works on this step while the host reads the one before it: it never
        # waits for the host, and the host runs at most one step ahead of it.
        self._read_metrics()
        self._in_flight = _Place(counters.step, counters.position, used), metrics
        self.clock.add(tokens_BxL.size, self._flops(tokens_BxL.shape))
        counters.step += 1
        counters.position += self._config.micro_batch
        counters.tokens, counters.flops = self.clock.tokens, self.clock.flops

    def _batch(self, position: int, used: float) -> np.ndarray:
        stages = self._config.curriculum
        blocks_BxL = self._stream.batch(position, self._config.micro_batch)
        length = curriculum.sequence_length(used, stages, blocks_BxL.shape[1])
        return curriculum.cut(blocks_BxL, length, stages.unfold)

    def _flops(self, shape: tuple[int, int]) -> float:
        rows, length = shape
        rate = self._config.objective.max_mask_rate
        per_token = train_flops_per_token(self._config.model, rate, length)
        return rows * length * per_token

    def _read_metrics(self) -> None:
        """Waits for the step in flight and counts it."""
        if self._in_flight is None:
            return
        self._read, on_device = self._in_flight
        self._in_flight = None
        metrics = {name: np.asarray(x).item() for name, x in on_device.items()}
        self.counters.updates += metrics["updated"]
        if metrics["finite"]:
            self.counters.window.append(metrics["loss"])
        self.counters.latest = {
            "learning_rate": metrics["learning_rate"],
            "grad_norm": metrics["grad_norm"],
            "batch_size": metrics["accumulate"] * self._config.micro_batch,
            "skipped": metrics["skipped"],
            "bad_in_a_row": metrics["bad_in_a_row"],
        }

    def _note_first_step(self, progress: Progress) -> None:
        self.first_step_s = time.monotonic() - self._micro_step.begun
        compile_s = self.clock.seconds["compilation"] - self._compiled_before_s
        progress.say(
            f"first step after {self.first_step_s:.1f} s, "
            f"{compile_s:.1f} s of compilation"
        )
        self._log.write(
            event=FIRST_STEP,
            step=self.counters.step,
            elapsed_s=self.clock.elapsed_s,
            first_step_s=self.first_step_s,
            compile_s=compile_s,
        )

    def _write_line(self) -> None:
        self._read_metrics()
        counters = self.counters
        if counters.window:
            counters.last_loss = math.fsum(counters.window) / len(counters.window)
        counters.window = []
        self._log.write(
            step=counters.step,
            updates=counters.updates,
            progress=self.clock.progress(),
            tokens=self.clock.tokens,
            elapsed_s=self.clock.elapsed_s,
            loss=counters.last_loss,
            **self.throughput.line(self.clock),
            **counters.latest,
        )

    def _validate(self, progress: Progress) -> None:
        self._read_metrics()
        with self.clock.measure("validation"):
            weights = train_step.weights(self._config, self.state)
            scores = score(self._config, weights, self._corpus)
        self._log.write(
            event="validation",
            step=self.counters.step,
            tokens=self.clock.tokens,
            elapsed_s=self.clock.elapsed_s,
            **scores,
        )
        progress.say(
            f"held-out loss {scores['loss']:.3f} nats (word frequencies alone: "
            f"{self._corpus.manifest['unigram_entropy']:.3f}) after "
            f"{self.clock.tokens:,} tokens, {self.clock.progress():.1%} of the budget"
        )
        self._last_validation = time.monotonic()

    def _save_if_it_fits(self) -> None:
        """Goes on without a checkpoint if the disk is full: room may be made later."""
        try:
            self._save()
        except DiskFull as error:
            print(f"{error}; going on, make room", flush=True)
            self._last_save = time.monotonic()

    def _save_at_last(self, signals: list[int]) -> None:
        """Returns when the state is on the disk, and waits for room: it cost much.

        Raises:
          UserError: another SIGINT or SIGTERM came meanwhile.
        """
        before, told = len(signals), False
        while True:
            try:
                self._save()
                self._store.wait()
                return
            except DiskFull as error:
                if not told:
                    print(f"{error}; waiting for room, Ctrl-C gives up", flush=True)
                told = True
                if set(signals[before:]) & {signal.SIGINT, signal.SIGTERM}:
                    step = self._store.latest_step() or 0
                    raise UserError(
                        f"{error}: the state was given up; make room, and the same "
                        f"command goes on from step {step}, what was lost is charged"
                    ) from error
            with self.clock.measure("idle"):
                time.sleep(WAIT_S)

    def _save(self) -> None:
        self._read_metrics()
        with self.clock.measure("checkpoints"):
            self.counters.seconds = self.clock.seconds
            self.counters.energy_kwh = self.throughput.energy_kwh
            self._store.save(self.counters.step, self.state, self.counters.to_dict())
        self._last_save = time.monotonic()

    def _check_loss(self) -> None:
        """Stops a run that does not learn."""
        guard, loss = self._config.guard, self.counters.last_loss
        if not guard.max_loss or self.clock.progress() < guard.max_loss_after:
            return
        if loss is not None and loss > guard.max_loss:
            self._save_if_it_fits()
            raise TrainingFailed(
                f"the training loss is {loss:.2f} after {self.clock.progress():.1%} of "
                f"the budget, above config.guard.max_loss={guard.max_loss:g}: try a "
                "lower --config.optimizer.learning_rate in another --workdir, or raise "
                "the limit (0 = none)"
            )

    def _check_numbers(self) -> None:
        """Goes back to the last checkpoint when too many steps in a row are bad."""
        counters, guard = self.counters, self._config.guard
        place = self._read
        if place is None or counters.latest["bad_in_a_row"] < guard.max_bad_steps:
            return
        dump = self._workdir / f"bad_batch-{place.step}.npz"
        tokens_BxL = self._batch(place.position, place.used)
        np.savez(dump, tokens=tokens_BxL, **place._asdict())
        what = (
            f"{counters.latest['bad_in_a_row']} micro-batches in a row had gradients "
            f"that are not finite, the last one is in {dump}"
        )
        if self._steps_back:
            raise TrainingFailed(
                f"{what}; the learning rate was already lowered once: pass a lower "
                "--config.optimizer.learning_rate and another --workdir"
            )
        self._step_back(what)

    def _step_back(self, why: str) -> None:
        self._in_flight = self._read = None
        self._steps_back += 1
        with contextlib.suppress(DiskFull):  # then the one before it serves
            self._store.wait()
        state, self.counters = begin(self._config, self._store, self._steps_back)
        self.state = state.replace(bad_in_a_row=jnp.zeros_like(state.bad_in_a_row))
        self.counters.latest["bad_in_a_row"] = 0
        self.clock.tokens = self.counters.tokens
        self.clock.flops = self.counters.flops
        self.clock.lose(self.counters.seconds)
        self.throughput.restart(self.clock)
        step, elapsed_s = self.counters.step, self.clock.elapsed_s
        self._log.cut(
            step,
            event=STEPPED_BACK,
            step=step,
            elapsed_s=elapsed_s,
            energy_kwh=self.throughput.energy_kwh,
            why=why,
        )
        print(
            f"{why}: going on from step {step} with the learning rate times "
            f"{self._config.guard.rate_factor:g}",
            flush=True,
        )


def begin(
    config: Config, store: CheckpointStore, steps_back: int
) -> tuple[train_step.TrainState, Counters]:
    """Returns the newest checkpoint's state and counters, or fresh ones.

    Args:
      config: the run's.
      store: where checkpoints are.
      steps_back: how often training went back to a checkpoint because of bad numbers;
        each time lowers the learning rate by `guard.rate_factor`.
    """
    sharding = train_step.replicated(train_step.make_mesh())
    make = functools.partial(train_step.init_state, config)
    step = store.latest_step()
    if step is None:
        state, counters = jax.jit(make, out_shardings=sharding)(), Counters()
    else:
        state = store.state(step, abstract(make, sharding))
        counters = Counters(**store.host(step))
    # The checkpoint may be from before the step back.
    scale = jnp.float32(config.guard.rate_factor**steps_back)
    return state.replace(rate_scale=jax.device_put(scale, sharding)), counters

"""What fine-tuning shows, logs and keeps while it runs."""

import dataclasses
import datetime
import functools
import hashlib
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cramjax import files
from cramjax.config import Config
from cramjax.glue import scores
from cramjax.glue.data import Encoded
from cramjax.glue.finetune import EVAL_BATCH, Group, Watch
from cramjax.training.log import MetricsLog
from cramjax.version import code_version, library_versions

LOG = "finetune.jsonl"
PLAIN_EVERY_S = 30.0
# After an epoch at most one row is predicted for so many trained ones. Forward alone, a
# row costs a third of a training step's: 7 % by calculation. Tasks of a few dozen rows
# pay more, 13 to 25 % (under a second) on intents10 on a CPU.
TRAINED_PER_PREDICTED = 5


@dataclasses.dataclass(frozen=True)
class Job:
    """One task from one initialization at one learning rate.

    Attributes:
      config: of the run.
      task: its name.
      title: of the task, as printed.
      start: what it starts from.
      rate: the learning rate.
      train: the training rows.
      scored: all sets that are predicted, {name: rows}, the dev sets first.
      metrics: {dev set: its metrics}.
    """

    config: Config
    task: str
    title: str
    start: str
    rate: float
    train: Encoded
    scored: dict[str, Encoded]
    metrics: dict[str, tuple[str, ...]]


def every(job: Job) -> tuple[int, ...]:
    """Returns for each dev set how far apart the rows are that epochs are scored on."""
    rows = max(len(job.train) // TRAINED_PER_PREDICTED, EVAL_BATCH)
    return tuple(-(-len(job.scored[name]) // rows) for name in job.metrics)


class Journal(Watch):
    """Follows one job: a progress line, finetune.jsonl, and finished groups of trials.

    A context manager. finetune.jsonl has a line per epoch and group of trials: "task",
    "start", "rate", "trials" (their numbers), "epoch", "loss" (mean over the epoch, of
    each trial; null if it is not finite), "scores" ({dev set: {metric: of each trial}})
    and "dev_rows" (how many rows these are of, spread evenly over the set; glue.json
    has the scores on all rows). A group that was interrupted is repeated: of two
    lines about the same epoch the later one counts.

    Attributes:
      skipped: updates left out of each trial whose group is finished.
    """

    def __init__(self, job: Job, pretrained: Any | None, workdir: Path, at_once: int):
        """Shows nothing yet.

        Args:
          job: what is done.
          pretrained: the weights it starts from, None for random ones.
          workdir: for the files.
          at_once: trials in one program, 0 if it is not chosen yet.
        """
        self._job, self._pretrained, self._workdir = job, pretrained, workdir
        self.at_once = at_once
        self.every = every(job)
        self.skipped: list[int] = []
        self._first: tuple[float, int] | None = None
        self._last_plain = time.monotonic()
        self._live = None
        if sys.stdout.isatty():
            line = Text(f"{self._title}: compiling")
            self._live = Live(line, console=Console(), transient=True)

    def __enter__(self):
        self._log = MetricsLog(self._workdir / LOG)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error):
        if self._live:
            self._live.stop()
        self._log.__exit__(*error)

    @property
    def _title(self) -> str:
        job = self._job
        return f"fine-tuning {job.title} ({job.start}, learning rate {job.rate:g})"

    def stepped(self, trials: range, step: int, steps: int, loss: float) -> None:
        """Shows how far the job is, on a terminal at once, elsewhere now and then."""
        count, now = self._job.config.glue.trials, time.monotonic()
        done, whole = trials.start * steps + step * len(trials), count * steps
        if self._first is None:  # the first chunk compiles: the speed is that after it
            self._first = (now, done)
        begin, before = self._first
        which = f"trial {trials.start + 1}"
        if len(trials) > 1:
            which = f"trials {trials.start + 1} to {trials.stop}"
        text = (
            f"{self._title}: {which} of {count}, step {step:,} of {steps:,}, loss "
            f"{loss:.3f}, {done / whole:.0%} done"
        )
        if done > before:
            seconds = round((whole - done) * (now - begin) / (done - before))
            text += f", {datetime.timedelta(seconds=seconds)} left"
        if self._live:
            self._live.update(Text(text))
        elif now - self._last_plain > PLAIN_EVERY_S:
            self._last_plain = now
            print(text, flush=True)

    def epoch(
        self, trials: range, epoch: int, loss_T: np.ndarray, outputs: list[np.ndarray]
    ) -> None:
        """Writes a line to finetune.jsonl."""
        scored, rows = {}, {}
        for (name, names), every, outputs_TxNxC in zip(
            self._job.metrics.items(), self.every, outputs, strict=True
        ):
            labels_N = self._job.scored[name].labels_N[::every]
            rows[name] = len(labels_N)
            scored[name] = scores.of_trials(names, labels_N, outputs_TxNxC)
        self._log.write(
            task=self._job.task,
            start=self._job.start,
            rate=self._job.rate,
            trials=list(trials),
            epoch=epoch,
            loss=[float(loss) if math.isfinite(loss) else None for loss in loss_T],
            scores=scored,
            dev_rows=rows,
        )

    def kept(self, first: int) -> Group | None:
        """Returns a group that an earlier session finished, from the same weights."""
        try:
            with np.load(self._path(first)) as found:
                arrays = dict(found)
        except Exception:  # numpy and zipfile raise all kinds; it can be trained again
            return None
        if str(arrays["of"]) != self._fingerprint:
            return None
        outputs = [arrays[f"outputs_{i}"] for i in range(len(self._job.scored))]
        skipped_T = arrays["skipped_T"]
        trials = range(first, first + len(skipped_T))
        return self._note(Group(trials, int(arrays["at_once"]), outputs, skipped_T))

    def finished(self, group: Group) -> None:
        """Keeps a group until the job is done, so that an interruption costs one."""
        self._note(group)
        if len(group.trials) == self._job.config.glue.trials:
            return
        buffer = io.BytesIO()
        outputs = {f"outputs_{i}": array for i, array in enumerate(group.outputs)}
        np.savez(
            buffer,
            of=self._fingerprint,
            at_once=group.at_once,
            skipped_T=group.skipped_T,
            **outputs,
        )
        path = self._path(group.trials.start)
        path.parent.mkdir(exist_ok=True)
        files.write_bytes(path, buffer.getvalue())

    def clear(self) -> None:
        """Deletes the groups: the job's scores and predictions are written.

        Also those that a configuration with more trials has left.
        """
        for path in self._path(0).parent.glob(f"{self._name}.trial*.npz"):
            path.unlink(missing_ok=True)

    def _note(self, group: Group) -> Group:
        self.at_once = group.at_once
        self.skipped += group.skipped_T.tolist()
        return group

    @property
    def _name(self) -> str:
        return f"{self._job.task}-{self._job.start}-{self._job.rate:g}"

    def _path(self, first: int) -> Path:
        return self._workdir / scores.PREDICTIONS / f"{self._name}.trial{first}.npz"

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Tells results of these rows, weights and numbers from all others."""
        config = self._job.config
        # Other tasks, initializations and rates may join without changing this job.
        glue = dataclasses.replace(
            config.glue,
            tasks=(),
            starts=(self._job.start,),
            learning_rates=(self._job.rate,),
        )
        sets = [self._job.train, *self._job.scored.values()]
        arrays = [array for rows in sets for array in (rows.tokens_NxL, rows.labels_N)]
        numbers = (config.model, glue, config.seed, code_version(), library_versions())
        found = hashlib.sha256(repr(numbers).encode())
        for array in (*arrays, *jax.tree.leaves(self._pretrained)):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

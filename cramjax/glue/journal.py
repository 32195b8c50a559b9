"""Progress, log and finished trials of a fine-tuning while it runs."""

import dataclasses
import datetime
import functools
import hashlib
import logging
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
from cramjax.glue.data import Encoded, TaskRows
from cramjax.glue.finetune import EVAL_BATCH, Group, Watch
from cramjax.training.log import MetricsLog
from cramjax.version import code_version, library_versions

logger = logging.getLogger(__name__)

LOG = "finetune.jsonl"
PLAIN_EVERY_S = 30.0
# After an epoch, at most one row is predicted for this many rows of training. A forward
# pass costs a third of a training step: 7 % by calculation. Tasks of a few dozen rows
# pay more, 13 to 25 % (under a second) on intents10 on a CPU.
TRAINED_PER_PREDICTED = 5


class Journal(Watch):
    """Follows one job: a progress line, finetune.jsonl, and finished groups of trials.

    A job is one task from one initialization at one learning rate. A context manager.

    finetune.jsonl has a line per epoch and group of trials: "task", "start" (the
    initialization), "rate", "trials" (their numbers), "epoch", "loss" (mean over the
    epoch, of each trial; null if it is not finite), "scores" ({dev set: {metric: score
    of each trial}}) and "dev_rows" (on how many rows, spread evenly over the set;
    glue.json has the scores on all rows). A group that was interrupted is repeated: of
    two lines about the same epoch the later one counts.

    Attributes:
      skipped: updates left out of each trial whose group is finished.
    """

    def __init__(
        self,
        config: Config,
        rows: TaskRows[Encoded],
        start: str,
        rate: float,
        pretrained: Any | None,
        workdir: Path,
        at_once: int,
    ):
        """Shows nothing yet.

        Args:
          config: of the run.
          rows: of the task.
          start: the initialization.
          rate: the learning rate.
          pretrained: the initial weights, None for random ones.
          workdir: the folder of the files.
          at_once: trials in one program, 0 if it is not chosen yet.
        """
        self._config, self._rows, self._pretrained = config, rows, pretrained
        self.start, self.rate, self.at_once = start, rate, at_once
        self._workdir = workdir
        few = max(len(rows.train) // TRAINED_PER_PREDICTED, EVAL_BATCH)
        self.every = tuple(-(-len(part) // few) for part in rows.dev.values())
        self.skipped: list[int] = []
        self._title = f"fine-tuning {rows.task.title} ({start}, learning rate {rate:g})"
        self._name = f"{rows.task.name}-{start}-{rate:g}"
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

    def stepped(self, trials: range, step: int, steps: int, loss: float) -> None:
        """Shows the job's progress, on a terminal at once, elsewhere now and then."""
        count, now = self._config.glue.trials, time.monotonic()
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
            logger.info(text)

    def epoch(
        self, trials: range, epoch: int, loss_T: np.ndarray, outputs: list[np.ndarray]
    ) -> None:
        """Writes a line to finetune.jsonl."""
        scored, dev_rows = {}, {}
        for dev, every, outputs_TxNxC in zip(
            self._rows.scored, self.every, outputs, strict=True
        ):
            labels_N = self._rows.dev[dev.name].labels_N[::every]
            dev_rows[dev.name] = len(labels_N)
            scored[dev.name] = scores.of_trials(dev.metrics, labels_N, outputs_TxNxC)
        self._log.write(
            task=self._rows.task.name,
            start=self.start,
            rate=self.rate,
            trials=list(trials),
            epoch=epoch,
            loss=[float(loss) if math.isfinite(loss) else None for loss in loss_T],
            scores=scored,
            dev_rows=dev_rows,
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
        skipped_T = arrays["skipped_T"]
        sets = len(self._rows.dev) + len(self._rows.test)
        group = Group(
            range(first, first + len(skipped_T)),
            int(arrays["at_once"]),
            [arrays[f"outputs_{i}"] for i in range(sets)],
            skipped_T,
        )
        self._note(group)
        return group

    def finished(self, group: Group) -> None:
        """Keeps a group until the job is done, so that an interruption costs one."""
        self._note(group)
        if len(group.trials) == self._config.glue.trials:
            return
        path = self._path(group.trials.start)
        path.parent.mkdir(exist_ok=True)
        with files.replacing(path) as file:
            np.savez(
                file,
                of=self._fingerprint,
                at_once=group.at_once,
                skipped_T=group.skipped_T,
                **{f"outputs_{i}": array for i, array in enumerate(group.outputs)},
            )

    def clear(self) -> None:
        """Deletes the groups: the job's scores and predictions are written.

        Also those of a configuration with more trials.
        """
        for path in self._path(0).parent.glob(f"{self._name}.trial*.npz"):
            path.unlink(missing_ok=True)

    def _note(self, group: Group) -> None:
        self.at_once = group.at_once
        self.skipped += group.skipped_T.tolist()

    def _path(self, first: int) -> Path:
        return self._workdir / scores.PREDICTIONS / f"{self._name}.trial{first}.npz"

    @functools.cached_property
    def _fingerprint(self) -> str:
        """A hash of the rows, weights and settings that a group's outputs depend on."""
        config, rows = self._config, self._rows
        # Other tasks, initializations and rates may join without changing this job.
        glue = dataclasses.replace(
            config.glue, tasks=(), starts=(self.start,), learning_rates=(self.rate,)
        )
        numbers = (config.model, glue, config.seed, code_version(), library_versions())
        found = hashlib.sha256(repr(numbers).encode())
        parts = (rows.train, *rows.dev.values(), *rows.test.values())
        arrays = [array for part in parts for array in (part.tokens_NxL, part.labels_N)]
        for array in (*arrays, *jax.tree.leaves(self._pretrained)):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

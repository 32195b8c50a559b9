"""What fine-tuning shows and logs while it runs."""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cramjax import files
from cramjax.config import Config
from cramjax.glue import scores
from cramjax.glue.data import Encoded, TaskRows
from cramjax.glue.finetune import EVAL_BATCH, Finetuned, Predict
from cramjax.training.log import MetricsLog
from cramjax.version import code_version, library_versions

LOG = "finetune.jsonl"
# After an epoch, at most one row is predicted for this many rows of training, which
# takes 7 % of an epoch: a forward pass costs a third of a training step.
TRAINED_PER_PREDICTED = 5


class Journal:
    """Follows one job: the progress line, and finetune.jsonl; a context manager.

    A job is one task from one initialization at one learning rate.

    finetune.jsonl has a line per epoch and trials that are trained together: "task",
    "start" (the initialization), "rate", "trials" (their numbers), "epoch", "loss"
    (mean over the epoch, of each trial; null if it is not finite), "scores" ({dev set:
    {metric: score of each trial}}) and "dev_rows" (on how many rows, spread evenly over
    the set; glue.json has the scores on all rows). Trials that were interrupted are
    repeated: of two lines about the same epoch the later one counts.
    """

    def __init__(
        self,
        log: Path,
        rows: TaskRows[Encoded],
        start: str,
        rate: float,
        update: Callable[[float, str], None] = lambda *_: None,
    ):
        """Shows nothing yet; `update` shows the fraction of the job that is done."""
        self._log = MetricsLog(log)
        self._rows, self._start, self._rate = rows, start, rate
        self._update = update

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._log.__exit__(*error)

    def show(self, done: float, loss: float) -> None:
        """Shows the fraction that is done, and the latest loss."""
        job = f"{self._rows.task.title} ({self._start}, rate {self._rate:g})"
        self._update(done, f"{job}  loss {loss:.3f}")

    def write_epoch(
        self, trials: range, epoch: int, loss_T: np.ndarray, predict: Predict
    ) -> None:
        """Writes a line to finetune.jsonl."""
        most = max(len(self._rows.train) // TRAINED_PER_PREDICTED, EVAL_BATCH)
        found, dev_rows = {}, {}
        for dev in self._rows.scored:
            rows = self._rows.dev[dev.name]
            rows = rows[:: -(-len(rows) // most)]
            dev_rows[dev.name] = len(rows)
            outputs_TxNxC = predict(rows)
            found[dev.name] = scores.of_trials(
                dev.metrics, rows.labels_N, outputs_TxNxC
            )
        self._log.write(
            task=self._rows.task.name,
            start=self._start,
            rate=self._rate,
            trials=list(trials),
            epoch=epoch,
            loss=[float(loss) if math.isfinite(loss) else None for loss in loss_T],
            scores=found,
            dev_rows=dev_rows,
        )


class FinishedTrials:
    """A job's finished trials, in predictions/ until all of them are.

    An interruption then costs the trials that it interrupts, and no others.
    """

    def __init__(
        self,
        workdir: Path,
        config: Config,
        rows: TaskRows[Encoded],
        start: str,
        rate: float,
        pretrained: Any | None,
    ):
        """Reads nothing yet; trials start from the weights `pretrained`."""
        self._folder = workdir / scores.PREDICTIONS
        self._name = f"{rows.task.name}-{start}-{rate:g}.trial"
        # Other tasks, initializations and rates may join without changing this job.
        glue = dataclasses.replace(
            config.glue, tasks=(), starts=(start,), learning_rates=(rate,)
        )
        parts = (rows.train, *rows.dev.values(), *rows.test.values())
        settings = (config.model, glue, config.seed, code_version(), library_versions())
        identity = hashlib.sha256(repr(settings).encode())
        for part in parts:
            identity.update(np.ascontiguousarray(part.tokens_NxL).tobytes())
            identity.update(np.ascontiguousarray(part.labels_N).tobytes())
        for array in jax.tree.leaves(pretrained):
            identity.update(np.ascontiguousarray(array).tobytes())
        self._identity = identity.hexdigest()

    def load(self, first: int) -> Finetuned | None:
        """Returns the trials from this number on, if nothing else has changed."""
        try:
            with np.load(self._path(first)) as found:
                if str(found["identity"]) != self._identity:
                    return None
                outputs = [found[f"outputs_{i}"] for i in range(int(found["sets"]))]
                return Finetuned(outputs, found["skipped_T"], int(found["at_once"]))
        except Exception:  # missing or damaged: the trials are trained again
            return None

    def save(self, first: int, trained: Finetuned) -> None:
        """Keeps trials."""
        self._folder.mkdir(exist_ok=True)
        with files.replacing(self._path(first)) as file:
            np.savez(
                file,
                identity=self._identity,
                sets=len(trained.outputs),
                skipped_T=trained.skipped_T,
                at_once=trained.at_once,
                **{f"outputs_{i}": array for i, array in enumerate(trained.outputs)},
            )

    def clear(self) -> None:
        """Deletes the trials: the job's scores are written."""
        for path in self._folder.glob(f"{self._name}*"):
            path.unlink(missing_ok=True)

    def _path(self, first: int) -> Path:
        return self._folder / f"{self._name}{first}.npz"

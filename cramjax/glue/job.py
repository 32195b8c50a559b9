"""A job of fine-tuning: what it shows, logs and keeps while it runs."""

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
from cramjax.training.log import MetricsLog
from cramjax.version import code_version, library_versions

LOG = "finetune.jsonl"
EVAL_BATCH = 128  # rows that are predicted at once
# After an epoch, at most one row is predicted for this many rows of training, which
# takes 7 % of an epoch: a forward pass costs a third of a training step.
TRAINED_PER_PREDICTED = 5


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What trained trials predict."""

    outputs: list[np.ndarray]  # outputs_TxNxC on each of the predicted sets
    skipped_T: np.ndarray  # updates left out because a gradient was not finite
    at_once: int  # how many trials one program trained


class Job:
    """One task from one initialization at one learning rate; a context manager.

    It keeps finished trials in predictions/ until all of them are finished: an
    interruption costs only the trials that were running.

    Its log, finetune.jsonl, has a line per epoch and group of trials trained together:
    "task", "start" (the initialization), "rate", "trials" (their numbers), "epoch",
    "loss" (mean over the epoch, of each trial; null if it is not finite), "scores"
    ({dev set: {metric: score of each trial}}) and "dev_rows" (on how many rows, spread
    evenly over the set; glue.json has the scores on all rows). Trials that were
    interrupted are repeated: of two lines about the same epoch the later one counts.
    """

    def __init__(
        self,
        workdir: Path,
        log: Path,
        config: Config,
        rows: TaskRows[Encoded],
        start: str,
        rate: float,
        pretrained: Any | None,
        update: Callable[[float, str], None] = lambda *_: None,
    ):
        """Shows and reads nothing yet.

        Trials start from the weights `pretrained`; `update` shows what fraction of the
        job is done.
        """
        self._log_path = log
        self._rows, self._start, self._rate = rows, start, rate
        self._folder = workdir / scores.PREDICTIONS
        self._name = f"{rows.task.name}-{start}-{rate:g}.trial"
        self._identity = _identity(config, rows, start, rate, pretrained)
        self._update = update

    def __enter__(self):
        self._log = MetricsLog(self._log_path)
        return self

    def __exit__(self, *error):
        self._log.__exit__(*error)

    def show(self, done: float, loss: float) -> None:
        """Shows the fraction of the job that is done, and the latest loss."""
        name = f"{self._rows.task.title} ({self._start}, rate {self._rate:g})"
        self._update(done, f"{name}  loss {loss:.3f}")

    def write_epoch(
        self,
        trials: range,
        epoch: int,
        loss_T: np.ndarray,
        predict: Callable[[Encoded], np.ndarray],
    ) -> None:
        """Writes a line to finetune.jsonl; `predict` returns outputs_TxNxC."""
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

    def load(self, first: int) -> Finetuned | None:
        """Returns the saved trials from this number on; None if the job has changed."""
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


def _identity(
    config: Config, rows: TaskRows[Encoded], start: str, rate: float, pretrained: Any
) -> str:
    """Returns a hash of all that a job's trials depend on."""
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
    return identity.hexdigest()

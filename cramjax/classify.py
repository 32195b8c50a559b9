"""The user's own classifier: trained from a model, chosen among trials, reported."""

import logging
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cramjax import files
from cramjax.checkpoints import classifier
from cramjax.checkpoints.load import Pretrained, load
from cramjax.config import Config, changed, to_dict
from cramjax.device.compile import use_cache
from cramjax.errors import UserError
from cramjax.glue import bag_of_words, data, evaluate, scores, tasks
from cramjax.glue.data import Encoded, Rows, TaskRows
from cramjax.glue.finetune import finetune
from cramjax.glue.journal import Journal
from cramjax.markdown import table
from cramjax.report import REPORT
from cramjax.run import check_workdir, lock_workdir

logger = logging.getLogger(__name__)


class Trial(NamedTuple):
    """A trained classifier, and how it does on the dev rows."""

    rate: float
    score: float  # minus infinity if it diverged: its outputs are not finite
    outputs_NxC: np.ndarray
    params: Any  # of `encoder.Classifier`

    def __str__(self) -> str:
        return f"{self.score:.1f}" if math.isfinite(self.score) else "diverged"


def train(
    checkpoint: Path,
    paths: Mapping[str, Path],
    overrides: Sequence[str],
    keep: str,
    workdir: Path,
) -> None:
    """Fine-tunes, and writes the kept trial and report.md to the workdir.

    Args:
      checkpoint: of the pretrained model, see `load`.
      paths: of the files "train" and "dev".
      overrides: of the config that the model was trained with.
      keep: "best" or "median", of the trials at the best learning rate.
      workdir: a folder without a model.

    Raises:
      UserError: a file or a folder cannot be used, or all trials diverged.
    """
    if (workdir / classifier.CONFIG).exists():
        raise UserError(f"--workdir={workdir} holds a model: pass another --workdir")
    for name, path in paths.items():
        data.check_file(path, f"--{name}=")
    pretrained = load(checkpoint)
    config = _config(pretrained, overrides)
    check_workdir(workdir, config)
    glue = config.glue
    task = tasks.own(glue, **{k: str(path.absolute()) for k, path in paths.items()})
    rows = evaluate.read(config, task)
    encoded = data.encode_all(rows, pretrained.tokenizer, glue)
    use_cache(config.compilation_cache)
    workdir.mkdir(parents=True, exist_ok=True)
    with lock_workdir(workdir):
        best, lines = [], []
        for rate in glue.learning_rates:
            trials = _trials(config, encoded, pretrained.params, rate, workdir)
            best = max(filter(None, (best, trials)), key=_standing)
            lines.append([f"{rate:g}", ", ".join(map(str, trials))])
            logger.info(f"learning rate {rate:g}: {glue.own_metric} {lines[-1][1]}")
        kept = _kept(best, keep)
        logger.info(
            f"kept: the {keep} trial at {kept.rate:g}, {glue.own_metric} {kept}"
        )
        origin = f"{checkpoint}, fine-tuned on {paths['train']}"
        sections = [
            f"# {workdir.name}",
            f"{origin} ({len(rows.train):,} rows) and scored on {paths['dev']} "
            f"({len(rows.dev['own']):,} rows). Kept is the {keep} of {glue.trials} "
            f"trials at the learning rate {kept.rate:g}: {glue.own_metric} {kept}. It "
            "was chosen on the rows that it is scored on; new text may score lower.",
            table(["learning rate", f"{glue.own_metric} of each trial"], lines),
            *_details(rows, kept),
        ]
        files.write_text(workdir / REPORT, "\n\n".join(sections) + "\n")
        facts = {"origin": origin, "metric": glue.own_metric, "score": kept.score}
        saved = classifier.SavedClassifier(
            model=config.model,
            params=kept.params,
            tokenizer=pretrained.tokenizer,
            labels=encoded.labels,
            columns=glue.own_texts,
            head_width=glue.head_width,
            max_length=glue.max_length,
            empty_second=glue.empty_second,
        )
        classifier.save(workdir, saved, facts)
    logger.info(f"classifier: {workdir}\nreport: {workdir / REPORT}")


def _config(pretrained: Pretrained, overrides: Sequence[str]) -> Config:
    """Returns the pretraining's config for all training rows, with overrides.

    Another project's model has the defaults, and computes in float32.
    """
    values = to_dict(pretrained.config or Config())
    dtype = values["model"]["dtype"] if pretrained.config else "float32"
    values["model"] = to_dict(pretrained.model) | {"dtype": dtype}
    values["glue"] |= {"max_train_rows": 0, "empty_second": pretrained.empty_second}
    return changed(values, overrides)


def _trials(
    config: Config, rows: TaskRows[Encoded], pretrained: Any, rate: float, workdir: Path
) -> list[Trial]:
    """Returns all trials at a learning rate."""
    params: list[Any] = []

    def keep(params_T: Any) -> None:
        params_T = jax.device_get(params_T)
        for i in range(len(jax.tree.leaves(params_T)[0])):
            params.append(jax.tree.map(operator.itemgetter(i), params_T))

    dev = rows.dev["own"]
    with Journal(workdir, rows, "pretrained", rate) as journal:
        trained = finetune(
            config.model,
            config.glue,
            rows.train,
            [dev],
            rows.outputs,
            pretrained=pretrained,
            learning_rate=rate,
            seed=config.seed,
            on_chunk=journal.show,
            on_epoch=journal.write_epoch,
            on_trained=keep,
        )
    trials = []
    for outputs_NxC, params_of_trial in zip(trained.outputs[0], params, strict=True):
        score = -math.inf
        if np.isfinite(outputs_NxC).all():
            predictions_N = scores.predictions(outputs_NxC)
            score = scores.score(config.glue.own_metric, dev.labels_N, predictions_N)
        trials.append(Trial(rate, score, outputs_NxC, params_of_trial))
    return trials


def _standing(trials: Sequence[Trial]) -> tuple[int, float]:
    """Returns what is compared between learning rates: fewest diverged, then median."""
    found = [trial.score for trial in trials]
    return sum(map(math.isfinite, found)), float(np.median(found))


def _kept(trials: Sequence[Trial], keep: str) -> Trial:
    """Returns the best or the median trial; of two middle ones, the lower."""
    finite = [trial for trial in trials if math.isfinite(trial.score)]
    if not finite:
        raise UserError(
            "the outputs of all trials are not finite: pass smaller "
            "--config.glue.learning_rates"
        )
    finite.sort(key=operator.attrgetter("score"))
    return finite[-1] if keep == "best" else finite[(len(finite) - 1) // 2]


def _details(rows: TaskRows[Rows], kept: Trial) -> list[str]:
    """Returns the sections of report.md about the kept trial."""
    dev, labels = rows.dev["own"], rows.labels
    metrics = tasks.OF_NUMBERS if rows.task.regression else ("accuracy", "macro_f1")
    baseline_N = bag_of_words.predict(rows.train, rows.dev, rows.task.regression)["own"]
    predictions_N = scores.predictions(kept.outputs_NxC)
    sides = {"this model": predictions_N, "bag of words": baseline_N}
    lines = [
        [name, *(f"{scores.score(m, dev.labels_N, side_N):.1f}" for m in metrics)]
        for name, side_N in sides.items()
    ]
    sections = ["## Scores, in percent", table(["", *metrics], lines)]
    if rows.task.regression:
        return sections
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    ids = range(len(labels))
    found = precision_recall_fscore_support(
        dev.labels_N, predictions_N, labels=ids, zero_division=0
    )
    by_label = [
        [label, *(f"{100 * x:.1f}" for x in numbers), f"{count:,}"]
        for label, *numbers, count in zip(labels, *found, strict=True)
    ]
    counts_CxC = confusion_matrix(dev.labels_N, predictions_N, labels=ids)
    confused = [
        [label, *map(str, counts_C)]
        for label, counts_C in zip(labels, counts_CxC, strict=True)
    ]
    return [
        *sections,
        "## By label, in percent",
        table(["label", "precision", "recall", "F1", "dev rows"], by_label),
        "## Confusion: rows are the true labels, columns the predicted ones",
        table(["", *labels], confused),
    ]

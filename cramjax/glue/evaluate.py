"""All tasks, from all initializations, at all learning rates: the scores of a run."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax import files
from cramjax.config import Config
from cramjax.errors import UserError
from cramjax.glue import bag_of_words, data, scores, tables, tasks, tfds_source
from cramjax.glue.finetune import finetune, seconds_per_row
from cramjax.glue.journal import Job, Journal

RESULTS = "glue.json"
TABLE = "glue.md"
ESTIMATED_ROWS = 1024  # of a task, from which the length of its batches is estimated


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is to fine-tune on.

    Attributes:
      complete: tasks with a training and a dev set, all files of which were read, and
        those that are scored already.
      downloadable: tasks that TFDS will have to download and prepare.
      download_bytes: what is to be downloaded for them.
      notes: which tasks are not scored, and what else is missing; a sentence each.
    """

    complete: list[tasks.Task]
    downloadable: list[tasks.Task]
    download_bytes: int
    notes: list[str]


def look(config: Config, workdir: Path | None = None) -> Found:
    """Reads every task's files, so that a mistake in them costs no training.

    Nothing is downloaded: of what TFDS has to, it only finds out whether it could.
    Tasks that are scored in the workdir already are not looked for.

    Raises:
      UserError: an unknown task, files that cannot be used (a line for each), or no
        task has a training and a dev set.
    """
    results = _so_far(workdir / RESULTS) if workdir else {}
    scored = [t for t in tasks.get(config.glue) if not _jobs(results, t, config)]
    chosen = [task for task in tasks.get(config.glue) if task not in scored]
    of_tfds = [task for task in chosen if data.is_from_tfds(task, config.glue)]
    tfds = tfds_source.look(of_tfds, config.glue)
    # Errors, one of each folder that lacks something.
    lines: dict[Any, str] = dict(enumerate(tfds.why))
    found = Found(scored, tfds.downloadable, tfds.download_bytes, [*tfds.why])
    faults = []
    for task in chosen:
        if task in (*tfds.downloadable, *tfds.lacking):
            continue
        try:
            found.notes.extend(_read(config, task))
            found.complete.append(task)
        except data.Incomplete as error:
            lines.setdefault(error.key, str(error))
            found.notes.append(error.note)
        except UserError as error:
            faults.append(str(error))
    if not (faults or found.complete or found.downloadable):
        faults = list(lines.values())
    if faults:
        raise UserError("\n".join(faults))
    return found


def fetch(
    config: Config, found: Found, say: Callable[[str], None] = print
) -> list[tasks.Task]:
    """Downloads and prepares what can be, and says what will not be scored.

    Returns:
      The tasks that have a training and a dev set.

    Raises:
      UserError: there are none, or their files cannot be used.
    """
    complete, notes = list(found.complete), list(found.notes)
    wanted = (*found.complete, *found.downloadable)
    if any(data.is_from_tfds(task, config.glue) for task in wanted):
        todo = ", ".join(task.title for task in found.downloadable)
        size = f"{found.download_bytes / 1e6:,.1f} MB to download"
        say(
            f"GLUE: from TFDS, in {tfds_source.folder(config.glue)}"
            + (f"; preparing {todo} ({size}) ..." if todo else "")
        )
    for task in found.downloadable:
        try:
            notes += _read(config, task)
            complete.append(task)
        except data.Incomplete as error:
            notes.append(error.note)
    if notes and not complete:
        raise UserError("\n".join(notes))
    for note in notes:
        say(note)
    return [task for task in tasks.get(config.glue) if task in complete]


def _read(config: Config, task: tasks.Task) -> tuple[str, ...]:
    """Reads a task's files; returns what is missing or left out, a sentence each.

    Raises:
      Incomplete: there is no training set, or no dev set.
      UserError: they cannot be used, or have too few rows for a batch.
    """
    loaded = data.load(task, config.glue)
    rows = data.subsample(loaded.train, task, config.glue.max_train_rows, config.seed)
    if len(rows) < config.glue.batch_size:
        raise UserError(
            f"config.glue.batch_size is {config.glue.batch_size}: {task.title} has "
            f"only {len(rows)} training rows (config.glue.max_train_rows="
            f"{config.glue.max_train_rows})"
        )
    return loaded.notes


def estimate_s(config: Config, chosen: list[tasks.Task], words: Tokenizer) -> float:
    """Estimates how long all trials, initializations and learning rates take.

    A step of the largest task is timed, and the others count by their padded tokens.
    Predicting a row, the forward pass alone, counts as a third of training on it.
    """
    glue = config.glue
    tokens, lengths = [], []
    for task in chosen:
        rows = data.load(task, glue)
        train = data.subsample(rows.train, task, glue.max_train_rows, config.seed)
        some = data.encode(
            data.subsample(train, task, ESTIMATED_ROWS, config.seed),
            words,
            glue.max_length,
            glue.empty_second,
        )
        steps = -(-len(some) // (glue.batch_size * glue.trials))
        lengths.append(
            np.mean(
                [
                    data.padded_length(some.tokens_NxL[step::steps], glue.max_length)
                    for step in range(steps)
                ]
            )
        )
        predicted = sum(map(len, (*rows.dev.values(), *rows.test.values())))
        tokens.append((glue.epochs * len(train) + predicted / 3) * lengths[-1])
    length = round(lengths[int(np.argmax(tokens))])
    per_token = seconds_per_row(config.model, glue, length) / length
    jobs = glue.trials * len(glue.starts) * len(glue.learning_rates)
    return jobs * sum(tokens) * per_token


def evaluate(
    config: Config,
    weights: dict[str, Any],
    words: Tokenizer,
    workdir: Path,
    say: Callable[[str], None] = print,
    imported: bool = False,
    chosen: Sequence[tasks.Task] | None = None,
) -> dict[str, Any]:
    """Fine-tunes on every task of the config and scores its dev sets.

    Results go to glue.json as they come; what is there already is not repeated. Beside
    it are glue.md, predictions/, finetune.jsonl (see `Journal`) and, of test sets,
    submission/. A task without a training set or without dev sets is named, and left
    out.

    Args:
      config: its `glue` and `model` sections.
      weights: parameters of `encoder.MaskedLM` for every start but "random".
      words: the tokenizer they were trained with.
      workdir: where glue.json is.
      say: called with a line per start and learning rate.
      imported: the weights are those of another project's model.
      chosen: the tasks, as `fetch` returns them; all of the config's if left out.

    Returns:
      What glue.json has as "tasks": {scored set: {"task", "title", "metric", "labels",
      "train_rows" and "dev_rows" (used), "full_train_rows" and "full_dev_rows" (of the
      benchmark; 0 = not known), "all_train_rows" (in the file), "majority" (score of
      always predicting the most frequent training label), "bag_of_words" ({metric:
      score}), "notes", "trials_at_once" (that one program trained), "starts": {start:
      {"scores" ({rate: score of each trial, in percent}), "diverged" ({rate: number of
      trials whose outputs are not finite}), "skipped" ({rate: updates of each trial
      that were left out because a gradient was not finite}), "best_rate" (see
      `scores.summarise`), "median", "mean", "std", "min", "max" (at that rate),
      "others" ({further metric: the same})}}}}
    """
    path = workdir / RESULTS
    results = _so_far(path)
    new = not (workdir / TABLE).exists()
    for task in tasks.get(config.glue) if chosen is None else chosen:
        jobs = _jobs(results, task, config)
        if not jobs:
            continue
        new = True
        try:
            sets = _load(config, task, words)
        except data.Incomplete as error:
            say(error.note)
            continue
        for note in sets.notes if chosen is None else ():
            say(note)
        entries = _of_task(results, task) or sets.entries
        if entries.keys() != sets.entries.keys():
            raise UserError(
                f"{path} has scores of {', '.join(entries)}, and the files are now of "
                f"{', '.join(sets.entries)}: delete it to score again"
            )
        results |= entries
        _check_rows(path, entries, sets.entries)
        bag_of_words.add(entries, task, config, say)
        for start, rate in jobs:
            begin = time.monotonic()
            job = Job(
                config,
                task.name,
                task.title,
                start,
                rate,
                sets.train,
                sets.dev | sets.test,
                sets.metrics,
            )
            # What was measured for the first job of a task holds for the others.
            measured = next(iter(entries.values())).get("trials_at_once", 0)
            at_once = measured or config.glue.trials_at_once
            with Journal(job, weights.get(start), workdir, at_once) as journal:
                _one(job, sets, entries, weights.get(start), workdir, journal)
                _write(path, results, config)
                journal.clear()
            for entry in entries.values():
                say(_scores_line(entry, job, time.monotonic() - begin))
    if results and new:
        differences = {
            f"{first} - {second}": scores.differences(results, workdir, first, second)
            for first, second in itertools.combinations(config.glue.starts, 2)
        }
        _write(path, results, config, differences)
        page = tables.page(results, config, differences, imported)
        files.write_text(workdir / TABLE, page)
    return results


def _scores_line(entry: dict[str, Any], job: Job, seconds: float) -> str:
    """Returns a line about one set's scores at one rate."""
    scored, rate = entry["starts"][job.start], f"{job.rate:g}"
    trials = scored["scores"][rate]
    remarks = [f"{seconds:.0f}s"]
    if "trials_at_once" in entry:
        remarks.append(f"{entry['trials_at_once']} of {len(trials)} trials at once")
    if any(skipped := scored["skipped"][rate]):
        remarks.append(f"updates skipped: {', '.join(map(str, skipped))}")
    if diverged := scored["diverged"][rate]:
        remarks.append(f"{diverged} diverged: their outputs are not finite")
    numbers = ", ".join(f"{score:.1f}" for score in trials)
    return (
        f"{entry['title']}: {job.start} at {rate}: {entry['metric']} {numbers} "
        f"({'; '.join(remarks)})"
    )


def _check_rows(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to score one start on other rows than another.

    Raises:
      UserError: the files have changed since an earlier session.
    """
    for name, entry in before.items():
        for key in ("train_rows", "dev_rows", "all_train_rows"):
            if entry.get(key, now[name][key]) != now[name][key]:
                raise UserError(
                    f"{path} has scores of {entry['title']} with {key}="
                    f"{entry[key]:,}, and the files now give {now[name][key]:,}: bring "
                    "them back, or delete it to score again"
                )


def _so_far(path: Path) -> dict[str, Any]:
    """Returns the scores of an earlier session."""
    if not path.exists():
        return {}
    again = "delete it to score again"
    found = files.read_json(path, again)
    if "tasks" not in found:
        raise UserError(f"{path} is of an earlier version of cramjax: {again}")
    return found["tasks"]


def _write(
    path: Path,
    results: dict[str, Any],
    config: Config,
    differences: dict[str, Any] | None = None,
) -> None:
    means = {start: scores.averages(results, start) for start in config.glue.starts}
    content = {"tasks": results, "averages": means, "differences": differences or {}}
    files.write_json(path, content)


def _jobs(
    results: dict[str, Any], task: tasks.Task, config: Config
) -> list[tuple[str, float]]:
    """Returns the initializations and rates at which a task is not scored yet."""
    entries = _of_task(results, task).values()

    def is_scored(start: str, rate: float) -> bool:
        return bool(entries) and all(
            f"{rate:g}" in entry["starts"].get(start, {"scores": {}})["scores"]
            for entry in entries
        )

    return [
        (start, rate)
        for start in config.glue.starts
        for rate in config.glue.learning_rates
        if not is_scored(start, rate)
    ]


def _of_task(results: dict[str, Any], task: tasks.Task) -> dict[str, Any]:
    """Returns what there is of the sets of a task."""
    return {n: entry for n, entry in results.items() if entry["task"] == task.name}


@dataclasses.dataclass(frozen=True)
class _Sets:
    """A task as tokens, and what glue.json says about it apart from scores."""

    train: data.Encoded
    dev: dict[str, data.Encoded]
    test: dict[str, data.Encoded]
    entries: dict[str, dict[str, Any]]
    outputs: int
    metrics: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def _load(config: Config, task: tasks.Task, words: Tokenizer) -> _Sets:
    """Returns the training and dev rows, and what does not depend on a model."""
    rows = data.load(task, config.glue)
    chosen = data.subsample(rows.train, task, config.glue.max_train_rows, config.seed)
    scored = {s.name: s for s in task.dev if s.name in rows.dev}
    train, *others = (
        data.encode(part, words, config.glue.max_length, config.glue.empty_second)
        for part in (chosen, *rows.dev.values(), *rows.test.values())
    )
    dev = dict(zip(rows.dev, others, strict=False))
    test = dict(zip(rows.test, others[len(dev) :], strict=True))
    entries = {}
    for name, s in scored.items():
        constant = (
            train.labels_N.mean()
            if task.regression
            else np.bincount(train.labels_N).argmax()
        )
        majority_N = np.full_like(dev[name].labels_N, constant)
        entries[name] = {
            "task": task.name,
            "title": s.title,
            "metric": s.metrics[0],
            "labels": rows.labels,
            "train_rows": len(train),
            "all_train_rows": len(rows.train),
            "full_train_rows": task.train_rows,
            "dev_rows": len(dev[name]),
            "full_dev_rows": s.rows,
            "majority": scores.score(s.metrics[0], dev[name].labels_N, majority_N),
            "notes": rows.notes,
            "starts": {},
        }
    return _Sets(
        train,
        dev,
        test,
        entries,
        1 if task.regression else len(rows.labels),
        {name: s.metrics for name, s in scored.items()},
        rows.notes,
    )


def _one(
    job: Job,
    sets: _Sets,
    entries: dict[str, dict[str, Any]],
    pretrained: Any | None,
    workdir: Path,
    journal: Journal,
) -> None:
    """Fine-tunes all trials of a job, and scores them."""
    start, rate, config = job.start, job.rate, job.config
    outputs = finetune(
        config.model,
        config.glue,
        job.train,
        list(job.scored.values()),
        sets.outputs,
        pretrained=pretrained,
        learning_rate=rate,
        seed=config.seed,
        watch=journal,
    )
    for (name, rows), outputs_TxNxC in zip(job.scored.items(), outputs, strict=True):
        predictions = {"predictions_TxN": scores.predictions(outputs_TxNxC)}
        if name in sets.dev:
            predictions["labels_N"] = rows.labels_N
            trials = scores.of_trials(job.metrics[name], rows.labels_N, outputs_TxNxC)
            scores.add(entries[name], start, rate, trials)
        else:
            name = f"{name}-test"
        scores.save_predictions(workdir, name, start, rate, **predictions)
    first, *_ = of_task = list(entries.values())
    for entry in of_task:
        scored = entry["starts"][start]
        scored.setdefault("diverged", {})[f"{rate:g}"] = scores.diverged(outputs)
        scored.setdefault("skipped", {})[f"{rate:g}"] = journal.skipped
        if journal.at_once:
            entry["trials_at_once"] = journal.at_once
    scores.summarise(of_task, start)
    for name in sets.test:
        scores.write_submission(workdir, first, start, name)

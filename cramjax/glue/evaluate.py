"""All tasks, from all initializations, at all learning rates: the scores of a run."""

import functools
import itertools
import logging
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
from cramjax.glue.data import Encoded, Rows, TaskRows
from cramjax.glue.finetune import fastest, finetune
from cramjax.glue.job import LOG, Finetuned, Job
from cramjax.glue.tasks import Task
from cramjax.progress import Stage

logger = logging.getLogger(__name__)

RESULTS = "glue.json"
TABLE = "glue.md"
ESTIMATED_ROWS = 1024  # of a task, from which the length of its batches is estimated
DELETE_IT = "delete it to score again"


def check(config: Config, workdir: Path) -> list[Task]:
    """Reads the files of every task that is not scored yet; logs what is missing.

    A mistake in them must not cost any training. Nothing is downloaded: TFDS is only
    asked whether it could.

    Returns:
      The tasks that have a training and a dev set, unless a download fails.

    Raises:
      UserError: a task is unknown, files cannot be used (a line for each), or no task
        has a training and a dev set.
    """
    results = read_results(workdir / RESULTS)
    wanted = tasks.get(config.glue)
    todo = [task for task in wanted if _jobs(results, task, config)]
    found, notes, faults, incomplete = [], [], [], []
    for task in todo:
        try:
            if data.is_from_tfds(task, config.glue):
                tfds_source.check(task, config.glue)
            else:
                notes += _read(config, task).notes
            found.append(task)
        except tasks.Incomplete as error:
            incomplete.append(error)
        except UserError as error:
            faults.append(str(error))
    notes += tasks.missing(incomplete)
    # Nothing can be scored, and nothing was scored before.
    if faults or (notes and not found and todo == wanted):
        raise UserError("\n".join(faults or notes))
    for note in notes:
        logger.info(note)
    return found


def fetch(config: Config, found: list[Task]) -> list[Task]:
    """Has TFDS download and prepare what is missing of the tasks that `check` returned.

    Returns:
      The tasks that have a training and a dev set; the others are logged.

    Raises:
      UserError: no task has, or their rows cannot be used.
    """
    complete, missing = [], []
    for task in found:
        try:
            if data.is_from_tfds(task, config.glue):
                folder = tfds_source.folder(config.glue)
                logger.info(f"{task.title}: from TFDS, {folder}")
                _read(config, task)
            complete.append(task)
        except tasks.Incomplete as error:
            missing.append(str(error))
            logger.info(missing[-1])
    if missing and not complete:
        raise UserError("\n".join(missing))
    return complete


def _read(config: Config, task: Task) -> TaskRows[Rows]:
    """Returns a task's rows, see `data.load`, enough of them for a batch."""
    glue = config.glue
    rows = data.subsample(data.load(task, glue), glue.max_train_rows, config.seed)
    if len(rows.train) < glue.batch_size:
        raise UserError(
            f"config.glue.batch_size is {glue.batch_size}: {task.title} has only "
            f"{len(rows.train)} training rows (config.glue.max_train_rows="
            f"{glue.max_train_rows})"
        )
    return rows


def estimate_s(config: Config, complete: list[Task], tokenizer: Tokenizer) -> float:
    """Estimates how long all trials, initializations and learning rates take.

    A step of the largest task is timed, and the others count by their padded tokens.
    Predicting a row, the forward pass alone, counts as a third of training on it.
    """
    glue = config.glue
    tokens, lengths = [], []
    for task in complete:
        rows = _read(config, task)
        few = data.subsample(rows, ESTIMATED_ROWS, config.seed).train
        few = data.encode(few, tokenizer, glue.max_length, glue.empty_second)
        starts = range(0, len(few), step := glue.batch_size * glue.trials)
        batches = [few.tokens_NxL[start : start + step] for start in starts]
        lengths.append(
            np.mean([data.padded_length(b, glue.max_length) for b in batches])
        )
        predicted = sum(map(len, (*rows.dev.values(), *rows.test.values())))
        tokens.append((glue.epochs * len(rows.train) + predicted / 3) * lengths[-1])
    length = round(lengths[int(np.argmax(tokens))])
    per_token = fastest(config.model, glue, length)[1] / (glue.batch_size * length)
    jobs = glue.trials * len(glue.starts) * len(glue.learning_rates)
    return jobs * sum(tokens) * per_token


def evaluate(
    config: Config,
    named_params: dict[str, Any],
    tokenizer: Tokenizer,
    workdir: Path,
    complete: Sequence[Task],
    imported: bool = False,
    on_trained: Callable[[float, Any], None] = lambda *_: None,
    part: int | None = None,
) -> dict[str, Any]:
    """Fine-tunes on every task and scores its dev sets.

    Results are written to glue.json after every job; jobs with results are skipped.
    Beside it are glue.md, predictions/, finetune.jsonl (see `Job`) and, for test
    sets, submission/.

    Args:
      config: its `glue`, `model` and `seed` are used.
      named_params: of `encoder.MaskedLM`, for every initialization but "random".
      tokenizer: the one they were trained with.
      workdir: the folder of glue.json.
      complete: the tasks that `fetch` returns.
      imported: the parameters are those of another project's model.
      on_trained: called with the learning rate and `finetune`'s params_T.
      part: which of several processes this is. Its results are a file of its own until
        `join_parts`, and so is its log, except process 0's.

    Returns:
      The value of "tasks" in glue.json: {scored set: {"task", "title", "metric",
      "labels", "train_rows" and "dev_rows" (used), "full_train_rows" and
      "full_dev_rows" (of the benchmark; 0 = not known), "all_train_rows" (in the file),
      "majority" (score of always predicting the most frequent training label),
      "bag_of_words" ({metric: score}), "notes", "trials_at_once" (in one program),
      "starts": {initialization: {"scores" ({rate: score of each trial, in percent}),
      "diverged" ({rate: number of trials whose outputs are not finite}), "skipped"
      ({rate: each trial's number of updates that were left out because a gradient was
      not finite}), "best_rate" (see `scores.summarise`), "median", "mean", "std",
      "min", "max" (at that rate), "others" ({further metric: the same})}}}}
    """
    path, log = workdir / RESULTS, workdir / LOG
    results = read_results(path)
    if part is not None:
        path = path.with_stem(f"{path.stem}-{part}")
        log = log.with_stem(f"{log.stem}-{part}") if part else log
        results = {
            n: x for task in complete for n, x in _of_task(results, task).items()
        }
    todo = [(task, jobs) for task in complete if (jobs := _jobs(results, task, config))]
    fraction_of, done = _fractions(config, todo), 0.0
    with Stage("fine-tuning") as stage:
        for task, jobs in todo:
            rows = _read(config, task)
            entries = _entries(path, results, rows)
            results |= entries
            bag_of_words.add(entries, rows)
            encoded = data.encode_all(rows, tokenizer, config.glue)
            del rows  # the texts of a large task
            for start, rate in jobs:
                started = time.monotonic()
                pretrained = named_params.get(start)
                show = stage.part(done, fraction_of[task.name])
                done += fraction_of[task.name]
                given = (workdir, log, config, encoded, start, rate, pretrained)
                with Job(*given, show) as job:
                    trained = finetune(
                        config.model,
                        config.glue,
                        encoded.train,
                        [*encoded.dev.values(), *encoded.test.values()],
                        encoded.outputs,
                        pretrained=pretrained,
                        learning_rate=rate,
                        seed=config.seed,
                        # STS-B has the scale of the paper's.
                        standardize=encoded.task.regression
                        and encoded.task.source == "own",
                        on_trained=functools.partial(on_trained, rate),
                        job=job,
                    )
                _add_job(entries, encoded, start, rate, trained, workdir)
                _write(path, results, config)
                job.clear()
                for entry in entries.values():
                    seconds = time.monotonic() - started
                    logger.info(_scores_line(entry, start, rate, seconds))
    if results and part is None and (todo or not (workdir / TABLE).exists()):
        differences = {
            f"{first} - {second}": scores.differences(results, workdir, first, second)
            for first, second in itertools.combinations(config.glue.starts, 2)
        }
        _write(path, results, config, differences)
        page = tables.page(results, config, differences, imported)
        files.write_text(workdir / TABLE, page)
    return results


def _fractions(config: Config, todo: list[tuple[Task, list[Any]]]) -> dict[str, float]:
    """Returns the fraction of all work in one job of each task, by training rows."""
    rows = {task.name: len(_read(config, task).train) for task, _ in todo}
    total = sum(rows[task.name] * len(jobs) for task, jobs in todo)
    return {name: count / total for name, count in rows.items()}


def join_parts(workdir: Path) -> None:
    """Joins the results of several processes, each of which has tasks of its own."""
    parts = sorted(workdir.glob("glue-[0-9]*.json"))
    if parts:
        joined = read_results(workdir / RESULTS)
        for part in parts:
            joined |= read_results(part)
        files.write_record(workdir / RESULTS, {"tasks": joined})
        (workdir / TABLE).unlink(missing_ok=True)  # `evaluate` writes it anew
    for part in parts:
        part.unlink()


def _entries(
    path: Path, results: dict[str, Any], rows: TaskRows[Rows]
) -> dict[str, dict[str, Any]]:
    """Returns a task's entries of glue.json: an earlier session's, or new ones."""
    new = {}
    train_N = rows.train.labels_N
    constant = train_N.mean() if rows.task.regression else np.bincount(train_N).argmax()
    for scored in rows.scored:
        labels_N = rows.dev[scored.name].labels_N
        majority_N = np.full_like(labels_N, constant)
        new[scored.name] = {
            "task": rows.task.name,
            "title": scored.title,
            "metric": scored.metrics[0],
            "labels": rows.labels,
            "train_rows": len(train_N),
            "all_train_rows": rows.all_train_rows,
            "full_train_rows": rows.task.train_rows,
            "dev_rows": len(labels_N),
            "full_dev_rows": scored.rows,
            "majority": scores.score(scored.metrics[0], labels_N, majority_N),
            "notes": rows.notes,
            "starts": {},
        }
    entries = _of_task(results, rows.task) or new
    before, now = (
        "; ".join(
            f"{name} ({(new.get(name, {}) | entry)['all_train_rows']:,} training rows, "
            f"{entry['train_rows']:,} of them used, and {entry['dev_rows']:,} dev rows)"
            for name, entry in of.items()
        )
        for of in (entries, new)
    )
    if before != now:
        raise UserError(
            f"{path} has scores of {before}, and the files now give {now}: bring the "
            f"earlier files back, or {DELETE_IT}"
        )
    return entries


def _add_job(
    entries: dict[str, dict[str, Any]],
    rows: TaskRows[Encoded],
    start: str,
    rate: float,
    trained: Finetuned,
    workdir: Path,
) -> None:
    """Adds a job's scores to the entries; writes predictions and submissions."""
    count = len(rows.dev)
    of_dev, of_test = trained.outputs[:count], trained.outputs[count:]
    for scored, outputs_TxNxC in zip(rows.scored, of_dev, strict=True):
        labels_N = rows.dev[scored.name].labels_N
        trials = scores.of_trials(scored.metrics, labels_N, outputs_TxNxC)
        scores.add(entries[scored.name], start, rate, trials)
        scores.save_predictions(
            *(workdir, scored.name, start, rate),
            predictions_TxN=scores.predictions(outputs_TxNxC),
            labels_N=labels_N,
        )
    for name, outputs_TxNxC in zip(rows.test, of_test, strict=True):
        predictions_TxN = scores.predictions(outputs_TxNxC)
        scores.save_predictions(
            *(workdir, f"{name}-test", start, rate), predictions_TxN=predictions_TxN
        )
    first, *_ = of_task = list(entries.values())
    for entry in of_task:
        scored = entry["starts"][start]
        diverged, skipped = scores.diverged(trained.outputs), trained.skipped_T.tolist()
        scored.setdefault("diverged", {})[f"{rate:g}"] = diverged
        scored.setdefault("skipped", {})[f"{rate:g}"] = skipped
        entry["trials_at_once"] = trained.at_once
    scores.summarise(of_task, start)
    for name in rows.test:
        scores.write_submission(workdir, first, start, name)


def _scores_line(entry: dict[str, Any], start: str, rate: float, seconds: float) -> str:
    """Returns a line about one set's scores at one rate."""
    scored, rate = entry["starts"][start], f"{rate:g}"
    trials = scored["scores"][rate]
    numbers = ", ".join(f"{score:.1f}" for score in trials)
    remarks = (
        f"{seconds:.0f}s; {entry['trials_at_once']} of {len(trials)} trials at once"
    )
    if any(skipped := scored["skipped"][rate]):
        remarks += f"; updates skipped: {', '.join(map(str, skipped))}"
    if diverged := scored["diverged"][rate]:
        remarks += f"; {diverged} diverged: their outputs are not finite"
    return (
        f"{entry['title']}: {start} at {rate}: {entry['metric']} {numbers} ({remarks})"
    )


def read_results(path: Path) -> dict[str, Any]:
    """Returns the scores of an earlier session."""
    if not path.exists():
        return {}
    found = files.read_json(path, DELETE_IT)
    if "tasks" not in found:
        raise UserError(f"{path} is of an earlier version of cramjax: {DELETE_IT}")
    return found["tasks"]


def _write(
    path: Path,
    results: dict[str, Any],
    config: Config,
    differences: dict[str, Any] | None = None,
) -> None:
    means = {start: scores.averages(results, start) for start in config.glue.starts}
    content = {"tasks": results, "averages": means, "differences": differences or {}}
    files.write_record(path, content)


def _jobs(
    results: dict[str, Any], task: Task, config: Config
) -> list[tuple[str, float]]:
    """Returns the initializations and rates at which a task is not scored yet."""
    entries = _of_task(results, task)
    return [
        (start, rate)
        for start in config.glue.starts
        for rate in config.glue.learning_rates
        if not entries
        or any(
            f"{rate:g}" not in entry["starts"].get(start, {"scores": {}})["scores"]
            for entry in entries.values()
        )
    ]


def _of_task(results: dict[str, Any], task: Task) -> dict[str, Any]:
    """Returns the entries of a task's sets."""
    return {n: entry for n, entry in results.items() if entry["task"] == task.name}

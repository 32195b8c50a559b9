"""The whole job: prepare, pretrain, evaluate, report; what is complete is skipped."""

import contextlib
import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from cramjax import files, progress, report, trackers, word_order
from cramjax.checkpoints import initial, weights
from cramjax.config import (
    FORMAT,
    OPERATIONAL_KEYS,
    Config,
    flatten,
    read_recorded,
    record,
    require,
    to_dict,
)
from cramjax.data import prepare
from cramjax.data.corpus import CORPUS, MANIFEST, TOKENIZER, Corpus, of_run
from cramjax.device import distributed, tuning
from cramjax.device.compile import MicroStep, use_cache
from cramjax.errors import UserError
from cramjax.glue import evaluate
from cramjax.glue.tasks import Task
from cramjax.training import train_step
from cramjax.training.pretrain import CHECKPOINTS, SUMMARY, pretrain

logger = logging.getLogger(__name__)

CONFIG = "config.json"
LOCK = "lock"  # of the process that works in the folder


def run(
    config: Config, workdir: Path, started_at: float | None = None
) -> dict[str, Any]:
    """Does what is left to do in a workdir, and writes report.md.

    Args:
      config: the run's; what it leaves to the device is as recorded, or chosen.
      started_at: `time.monotonic()` when the session began; now if it is left out.

    Returns:
      The pretrained parameters, and the averages that are on, by name.

    Raises:
      UserError: a mistake that can be seen before compute is spent.
      Interrupted: a signal arrived during pretraining; the state is saved.
    """
    started_at = time.monotonic() if started_at is None else started_at
    config, initial_params = initial.begin(config, workdir)
    config = as_recorded(config, workdir)
    distributed.check_equal(repr(config))
    tasks = check(config, workdir)
    use_cache(config.compilation_cache)
    start = time.monotonic()
    with distributed.first_alone("fetch"):
        tasks = evaluate.fetch(config, tasks)
    _announce(config, tasks)
    # Shifted past downloads and corpus building, which first_step_s excludes.
    started_at += time.monotonic() - start
    with contextlib.ExitStack() as stack:
        if (workdir / SUMMARY).exists():
            tracking = _record_and_track(config, workdir, stack)
            named_params = weights.read_run(config, workdir)
            summary = files.read_json(workdir / SUMMARY, "delete it to make it again")
            # An earlier version did not write them, or the disk was full.
            if distributed.is_first() and not weights.is_written(config, workdir):
                weights.write_run(named_params, workdir)
        else:
            with ThreadPoolExecutor(1) as pool:
                corpus, compiling, built_s = _prepare(config, workdir, pool)
                with lock_workdir(workdir):
                    alone = partial(train_step.build, mesh=train_step.make_mesh())
                    config = tuning.choose(config, alone)
                    most = max(config.devices, distributed.devices())
                    config = dataclasses.replace(config, devices=most)
                    tracking = _record_and_track(config, workdir, stack)
                    if not compiling:
                        compiling = pool.submit(train_step.build(config).compile_ahead)
                    named_params, summary = pretrain(
                        *(config, corpus, workdir, compiling, started_at + built_s),
                        initial_params,
                    )
                    if distributed.is_first():
                        weights.write_run(named_params, workdir)
        if "word_order" in summary:  # older versions did not measure it
            logger.info(word_order.line(summary["word_order"]))
        logger.info(
            f"held-out loss {summary['held_out_loss']:.3f} nats, unigram entropy "
            f"{summary['unigram_entropy']:.3f}, after {summary['tokens']:,} tokens"
        )
        run_tokenizer, manifest = of_run(workdir)
        with lock_workdir(workdir):
            results = _evaluate(config, named_params, run_tokenizer, workdir, tasks)
            if tracking:
                medians = {
                    name: {start: x["median"] for start, x in entry["starts"].items()}
                    for name, entry in results.items()
                }
                tracking.log({"event": "final", **summary, "scores": medians})
                finished = report.Run(config, manifest, summary, results, workdir)
                write_report(finished)
            distributed.wait_for_all("reported")
    return named_params


def _announce(config: Config, tasks: Sequence[Task]) -> None:
    """Tells the progress line what there is to do, as far as the config says it."""
    kind = config.budget.kind
    amount = f"{getattr(config.budget, kind):,.12g} {kind}"
    stages = {"corpus": "", "pretraining": amount}
    if tasks:
        stages["fine-tuning"] = f"tasks: {len(tasks)}"
    progress.plan(stages)


def _record_and_track(
    config: Config, workdir: Path, stack: contextlib.ExitStack
) -> trackers.Trackers | None:
    """Writes config.json and starts the trackers, if this is the first process."""
    if not distributed.is_first():
        return None
    record(workdir / CONFIG, config)
    return stack.enter_context(trackers.Trackers(config, workdir))


def _evaluate(
    config: Config,
    named_params: Mapping[str, Any],
    run_tokenizer: Tokenizer,
    workdir: Path,
    tasks: Sequence[Task],
) -> dict[str, Any]:
    """Returns all results; of several processes, each fine-tunes on its own tasks."""
    given = (config, named_params, run_tokenizer, workdir)
    if distributed.is_first():
        evaluate.join_parts(workdir)  # which an interruption has left
    distributed.wait_for_all("joined")
    if (count := jax.process_count()) > 1:
        part = jax.process_index()
        evaluate.evaluate(*given, tasks[part::count], part=part)
        distributed.wait_for_all("evaluated")
    if not distributed.is_first():
        return {}
    evaluate.join_parts(workdir)
    return evaluate.evaluate(*given, tasks)


def write_report(finished: report.Run) -> None:
    """Writes report.md, unless the run is of a version that did not write all of it."""
    if missing := sorted(report.NEEDED - finished.summary.keys()):
        logger.info(
            f"no new {report.REPORT}: {SUMMARY} is of an earlier version, without "
            f"{', '.join(missing)}; all scores are in "
            f"{finished.workdir / evaluate.TABLE}"
        )
    else:
        path = report.write(finished)
        logger.info(report.verdict(finished).replace("**", ""))
        logger.info(f"report: {path}")


def check(config: Config, workdir: Path, *more: Callable[[], None]) -> list[Task]:
    """Checks what can be checked before any text or task is downloaded.

    If pretraining is finished in the workdir, neither the text nor the GPU is needed.
    `more` are further checks, which raise `UserError`.

    Returns:
      The tasks that can be fine-tuned on.

    Raises:
      UserError: all that is wrong, a line each.
    """
    checks = [partial(check_workdir, workdir, config), *more]
    checks += [partial(trackers.check, config)]
    if not (workdir / SUMMARY).exists():
        checks += [partial(check_platform, config), partial(check_text, config)]
    found, lines = [], []
    for try_one in (*checks, partial(evaluate.check, config, workdir)):
        try:
            found = try_one()
        except UserError as error:
            lines.append(str(error))
    if lines:
        raise UserError("\n".join(lines))
    return found


def as_recorded(config: Config, workdir: Path) -> Config:
    """Returns the config with an earlier session's choices for the device."""
    path = workdir / CONFIG
    if not path.exists():
        return config
    values = flatten(read_recorded(path, "pass another --workdir"))
    most = max(config.devices, values["devices"])
    config = dataclasses.replace(config, devices=most)
    rows, attention = values.get("micro_batch"), values.get("model.attention")
    if config.micro_batch == 0 and rows in range(config.batch.sequences + 1):
        config = dataclasses.replace(config, micro_batch=rows)
    if config.model.attention == "auto" and isinstance(attention, str):
        config = tuning.with_attention(config, attention)
    return config


def _prepare(
    config: Config, workdir: Path, pool: Executor
) -> tuple[Corpus, Future[MicroStep] | None, float]:
    """Returns the corpus, and records it in the workdir.

    Also returns the micro-step if it is being compiled meanwhile, and the seconds that
    building the corpus took, 0 if it existed.
    """
    path = prepare.corpus_path(config)
    check_corpus(workdir, path.name)
    exists, compiling, start = (path / MANIFEST).exists(), None, time.monotonic()
    if exists and not tuning.is_asked_for(config):
        compiling = pool.submit(train_step.build(config).compile_ahead)
    with distributed.first_alone("corpus"):
        corpus = prepare.prepare(config)
    built_s = 0.0 if exists else time.monotonic() - start
    if distributed.is_first():
        note_corpus(workdir, corpus)
    return corpus, compiling, built_s


def check_platform(config: Config) -> None:
    """Refuses to pretrain a GPU config without a GPU.

    Raises:
      UserError: `config.platform` or `config.model.attention` asks for a GPU that JAX
        does not see, or that is too old for cuDNN's attention; or several GPUs cannot
        share a micro-batch equally.
    """
    attention, backend = config.model.attention, jax.default_backend()
    count, rows = distributed.devices(), config.micro_batch
    multiple = f"a multiple of {count}, the number of GPUs: each takes its part"
    require(rows % count == 0, "micro_batch", rows, multiple)
    if backend == "gpu":
        require(
            attention != "cudnn" or tuning.has_cudnn(),
            "model.attention",
            attention,
            f"'xla' on {jax.local_devices()[0].device_kind}: cuDNN's needs compute "
            "capability 8.0",
        )
        return
    for key, value, needs_gpu, instead in (
        ("platform", config.platform, "gpu", "any"),
        ("model.attention", attention, "cudnn", "xla"),
    ):
        require(
            value != needs_gpu,
            key,
            value,
            f"{instead!r} where JAX sees only {backend}: pass --config.{key}={instead},"
            " or install the extra cuda12 or cuda13",
        )


def check_text(config: Config) -> None:
    """Checks that the text, see `prepare.check`, and `config.data.dir` can be used."""
    nearest = nearest_folder(Path(config.data.dir).expanduser())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(
            f"config.data.dir is {config.data.dir!r}: cannot be written; pass another "
            "one"
        )
    prepare.check(config)


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of the workdir during the block; process 0 does so for all.

    Raises:
      UserError: another process uses it.
    """
    if not distributed.is_first():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(workdir / LOCK, blocking=False))
        except Timeout as error:
            raise UserError(
                f"--workdir={workdir} is in use by another process: wait for it, or "
                "pass another --workdir"
            ) from error
        yield


def check_corpus(workdir: Path, name: str) -> None:
    """Refuses to continue with a corpus different from the run's."""
    path = workdir / CORPUS
    if not path.exists():
        return
    before = files.read_json(path, "pass another --workdir").get("name", name)
    if before != name:
        raise UserError(
            f"--workdir={workdir} was trained on the corpus {before}, and "
            f"config.data.sources now gives {name}: pass another --workdir, "
            "or bring the text back"
        )


def note_corpus(workdir: Path, corpus: Corpus) -> None:
    """Copies the corpus's tokenizer and manifest to the workdir.

    Raises:
      UserError: the run began with a corpus of the same name but with other tokens.
    """
    path = workdir / CORPUS
    if path.exists():
        before = files.read_json(path, "pass another --workdir")
        if _checksums(before) != _checksums(corpus.manifest):
            raise UserError(
                f"--workdir={workdir} was trained on another {corpus.path}, which has "
                "been rebuilt since with other tokens or blocks (their checksums "
                "differ): bring it back, or pass another --workdir"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / TOKENIZER, (corpus.path / TOKENIZER).read_text())
    files.write_record(path, {"name": corpus.path.name, **corpus.manifest})


def _checksums(manifest: Mapping[str, Any]) -> list[int | None]:
    shards = itertools.chain.from_iterable(manifest["shards"].values())
    return [manifest["tokenizer_crc32"], *(shard["crc32"] for shard in shards)]


def nearest_folder(path: Path) -> Path:
    """Returns the path, or the nearest one above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def check_workdir(workdir: Path, config: Config) -> None:
    """Refuses a workdir in which another config has run.

    The keys of `glue` may change until there are scores.

    Raises:
      UserError: it cannot be written, is in use, or holds a run with another config, of
        which the first differing key is named.
    """
    nearest = nearest_folder(workdir)
    if not nearest.is_dir():
        raise UserError(f"--workdir={workdir}: {nearest} is a file; pass a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"--workdir={workdir}: {nearest} cannot be written")
    if (workdir / LOCK).exists():
        with lock_workdir(workdir):
            pass
    path = workdir / CONFIG
    if not path.exists():
        return
    old = flatten(read_recorded(path, "pass another --workdir"))
    unfinished = (workdir / CHECKPOINTS).exists() and not (workdir / SUMMARY).exists()
    if (written_in := old.pop("format")) != FORMAT and unfinished:
        raise UserError(
            f"--workdir={workdir} holds an unfinished run of an earlier version of "
            f"cramjax ({CONFIG} has the format {written_in}, this version writes "
            f"{FORMAT}): finish it with that version, or pass another --workdir"
        )
    new = flatten(to_dict(config))
    if new["init_hash"] and new["init_hash"] == old.get("init_hash"):
        for key in ("init_from", "data.tokenizer"):  # the same weights, elsewhere now
            old[key] = new[key]
    scores = workdir / evaluate.RESULTS
    for key in sorted({*old, *new} - OPERATIONAL_KEYS):
        of_glue = key.startswith("glue.")
        if old.get(key) == new.get(key) or (of_glue and not scores.exists()):
            continue
        hint = f"delete {scores} to score again" if of_glue else "that value"
        raise UserError(
            f"--workdir={workdir} holds a run with config.{key}={old.get(key)!r}, "
            f"not {new.get(key)!r}: pass another --workdir, or {hint}"
        )

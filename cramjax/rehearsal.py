"""Every stage for a moment, on the real config, before a day is spent on it."""

import contextlib
import dataclasses
import io
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout

from cramjax.config import BudgetConfig, Config
from cramjax.data import sample
from cramjax.data.corpus import MANIFEST, Corpus
from cramjax.data.sample import Sample
from cramjax.describe import state_bytes
from cramjax.device import monitor, tuning
from cramjax.device.compile import Ahead, seconds_per_step, use_cache
from cramjax.errors import Interrupted, UserError
from cramjax.glue import evaluate, tasks
from cramjax.model.flops import train_flops_per_token
from cramjax.run import as_recorded, look, nearest_folder
from cramjax.tokens import token_dtype
from cramjax.training import train_step
from cramjax.training.pretrain import (
    CHECKPOINTS,
    check_memory,
    out_of_memory_explained,
    pretrain,
    read_back,
)

UPDATES = 4
PREFIX = ".rehearsal-"  # of the folder
INTERRUPTED = "interrupted: a rehearsal leaves nothing behind"
YOUNG_S = 10.0  # so old is a folder that has a lock, if it will have one
MEASURED_S = 5.0


def rehearse(config: Config, workdir: Path) -> None:
    """Tries all stages, prints a line for each and what the budget will buy.

    What it writes is in a folder beside the workdir that is deleted in the end; only
    compiled programs stay, in `config.compilation_cache`, and what TFDS prepares.

    Raises:
      UserError: what would end the run (a line for each thing that can be seen without
        trying), or its disk being too small.
      Interrupted: a signal came.
    """
    config = as_recorded(config, workdir)
    found = look(config, workdir, partial(_check_workdirs_disk, config, workdir))
    use_cache(config.compilation_cache)
    place = nearest_folder(workdir)
    try:
        with _scratch(place) as scratch:
            _try_all(config, found, scratch)
    except Interrupted as error:
        raise Interrupted(INTERRUPTED, error.exit_code - 128) from error
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        raise Interrupted(INTERRUPTED, number) from error


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """Makes a folder that is gone after the block, and so are those of killed ones.

    Raises:
      UserError: it cannot be made.
    """
    for left in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(Timeout, OSError):
            if time.time() - left.stat().st_mtime > YOUNG_S:
                FileLock(left / "lock", blocking=False).acquire().lock.release()
                shutil.rmtree(left)
    try:
        folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=place)
    except OSError as error:
        raise UserError(
            f"--workdir: {place} cannot be written ({error.strerror}); pass another one"
        ) from error
    with folder as name, FileLock(Path(name) / "lock"):
        yield Path(name)


def _try_all(config: Config, found: evaluate.Found, scratch: Path) -> None:
    text = sample.read(config, lambda line: _say("text", line))
    complete = evaluate.fetch(config, found, partial(_say, "fine-tuning data"))
    named = ", ".join(task.title for task in complete)
    _say("fine-tuning data", f"readable: {named}" if named else "no tasks")
    corpus = sample.pack(config, text, scratch)
    blocks = len(corpus.train) + len(corpus.held_out)
    _say("corpus", f"{text.chars:,} characters make {blocks:,} blocks")
    all_tokens = _tokens(text, corpus)
    _check_corpus_disk(config, all_tokens)
    config = tuning.choose(config, train_step.build)
    with Ahead() as ahead, out_of_memory_explained(config):
        config = _each_step_an_update(config)
        ahead.start(train_step.build(config))
        seconds_per_step = _try_step(config, ahead)
        weights = _try_training(config, corpus, scratch, ahead)
    _try_fine_tuning(config, weights, corpus, complete)
    compile_s = ahead.result().compile_s
    _say("budget", estimate(config, seconds_per_step, compile_s, all_tokens))


def _say(stage: str, text: str) -> None:
    print(f"rehearsal: {stage}: {text}", flush=True)


def _tokens(text: Sample, corpus: Corpus) -> float | None:
    """Returns how many all of the text has, about; None if that is not known."""
    if text.all_chars is None:
        return None
    return text.all_chars * sum(corpus.manifest["tokens"].values()) / text.chars


def _check_workdirs_disk(config: Config, workdir: Path) -> None:
    """Compares the checkpoints with what is free.

    Raises:
      UserError: they will not fit.
    """
    state = sum(state_bytes(config).values())
    there = [p for p in (workdir / CHECKPOINTS).rglob("*") if p.is_file()]
    # A new checkpoint is whole before the oldest one is deleted.
    needed = (config.checkpoint.keep + 1) * state
    needed = max(needed - sum(path.stat().st_size for path in there), state)
    place = nearest_folder(workdir)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"config.checkpoint.keep is {config.checkpoint.keep}: checkpoints take "
            f"{_size(needed)}, and {place} has {_size(free)} left: make room, or pass "
            "another --workdir"
        )
    _say("disk", f"checkpoints take {_size(needed)} of {_size(free)} free")


def _check_corpus_disk(config: Config, tokens: float | None) -> None:
    """Compares the corpus with what is free.

    Raises:
      UserError: it will not fit.
    """
    folder = Path(config.data.dir).expanduser()
    free = shutil.disk_usage(nearest_folder(folder)).free
    if tokens is None:
        _say("disk", f"the corpus takes, not known how much, of {_size(free)} free")
        return
    needed = tokens * np.dtype(token_dtype(config.model.vocab_size)).itemsize
    if needed > free and not any(folder.glob(f"*/{MANIFEST}")):
        raise UserError(
            f"config.data.dir is {config.data.dir!r}: it has {_size(free)} left, and "
            f"the corpus takes {_size(needed)} or so: make room, or pass another one"
        )
    _say("disk", f"the corpus takes {_size(needed)} or so of {_size(free)} free")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _each_step_an_update(config: Config) -> Config:
    batch = dataclasses.replace(
        config.batch, sequences=config.micro_batch, ramp_share=0.0
    )
    stages = dataclasses.replace(config.curriculum, lengths=(), starts=())
    return dataclasses.replace(config, batch=batch, curriculum=stages)


def _try_step(config: Config, ahead: Ahead) -> float:
    """Returns the seconds of a micro-step.

    Raises:
      UserError: it is too large for the host's memory.
    """
    rows, length = config.micro_batch, config.model.max_length
    _say("training step", f"compiling it for {rows} x {length} tokens ...")
    step = ahead.result()
    check_memory(config, step)
    seconds = seconds_per_step(step, MEASURED_S)
    tokens = rows * length
    per_token = train_flops_per_token(config.model, config.objective.max_mask_rate)
    mfu = monitor.mfu(tokens * per_token, seconds)
    _say(
        "training step",
        f"compiled in {step.compile_s:.0f} s; it needs {_size(step.needed_bytes)} of "
        f"the {_size(tuning.device_bytes())} there are; "
        f"{tokens / seconds:,.0f} tokens/s" + (f", mfu {mfu:.0%}" if mfu else ""),
    )
    return seconds


def _try_training(
    config: Config, corpus: Corpus, scratch: Path, ahead: Ahead
) -> dict[str, Any]:
    """Returns the weights after a few updates, written and read back.

    Raises:
      UserError: what was read is not what was written.
    """
    tokens = UPDATES * config.micro_batch * config.model.max_length
    trial = dataclasses.replace(
        config,
        budget=BudgetConfig(hours=0.0, tokens=tokens, flops=0.0),
        guard=dataclasses.replace(config.guard, max_loss=0.0),
        validation=dataclasses.replace(
            config.validation, max_blocks=config.micro_batch
        ),
    )
    workdir = scratch / "run"
    workdir.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        weights, summary = pretrain(trial, corpus, workdir, ahead)
    _say(
        "training",
        f"{summary['updates']} updates, loss {summary['train_loss']:.2f}, held out "
        f"{summary['held_out_loss']:.2f}",
    )
    start = time.monotonic()
    restored, _ = read_back(trial, workdir)
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), weights, restored)
    if not all(jax.tree.leaves(equal)):
        raise UserError(
            f"{workdir / CHECKPOINTS} is not read as it was written: pass a --workdir "
            "on another disk"
        )
    files = (workdir / CHECKPOINTS).rglob("*")
    size = sum(path.stat().st_size for path in files if path.is_file())
    _say(
        "checkpoint",
        f"{size / 1e9:.2f} GB written in {summary['seconds']['checkpoints']:.1f} s, "
        f"read back equal in {time.monotonic() - start:.1f} s",
    )
    return weights


def _try_fine_tuning(
    config: Config, weights: dict[str, Any], corpus: Corpus, complete: list[tasks.Task]
) -> None:
    """Takes one step of the first task, predicts, and estimates the whole time."""
    if not complete:
        return
    [task, *_] = complete
    _say("fine-tuning", f"one step of {config.glue.trials} trials of {task.title} ...")
    start = time.monotonic()
    rows = evaluate.try_out(config, task, weights.get("pretrained"), corpus.tokenizer)
    took_s = time.monotonic() - start
    hours = evaluate.estimate_s(config, complete, corpus.tokenizer) / 3600
    whole = f"{hours:.1f} hours" if hours > 2 else f"{60 * hours:.1f} minutes"
    _say(
        "fine-tuning",
        f"{rows} rows predicted, {took_s:.0f} s; an estimate of the whole: {whole}",
    )


def estimate(
    config: Config,
    seconds_per_step: float,
    compile_s: float,
    all_tokens: float | None = None,
) -> str:
    """Returns what the budget will buy, or take, at this speed.

    Args:
      config: with the budget.
      seconds_per_step: of a micro-batch.
      compile_s: what compiling takes of the budget.
      all_tokens: that the text has, about, where it is known.
    """
    tokens_per_s = config.micro_batch * config.model.max_length / seconds_per_step
    budget = config.budget

    def passes(tokens: float) -> str:
        count = tokens / all_tokens if all_tokens else 0.0
        return f", {count:.2g} passes over the text" if count > 1 else ""

    if budget.kind == "hours":
        tokens = max(budget.hours * 3600 - compile_s, 0) * tokens_per_s
        return f"{budget.hours:g} hours buy about {tokens:.2g} tokens{passes(tokens)}"
    per_token = train_flops_per_token(config.model, config.objective.max_mask_rate)
    tokens = budget.tokens or budget.flops / per_token
    minutes = (tokens / tokens_per_s + compile_s) / 60
    return f"{tokens:.3g} tokens take about {minutes:,.1f} minutes{passes(tokens)}"

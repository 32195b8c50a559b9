"""Every stage for a moment, on the real config, before a day is spent on it."""

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cramjax.data import sample
from cramjax.data.corpus import MANIFEST, Corpus
from cramjax.data.packing import token_dtype
from cramjax.data.sample import Sample
from cramjax.describe import state_bytes
from cramjax.device import throughput, tuning
from cramjax.device.compilation import Ahead, use_cache
from cramjax.errors import UserError
from cramjax.flops import train_flops_per_token
from cramjax.glue import evaluate, tasks
from cramjax.run import as_recorded, check_platform, check_workdir, nearest_folder
from cramjax.schema import BudgetConfig, Config
from cramjax.training.pretrain import (
    CHECKPOINTS,
    out_of_memory_explained,
    pretrain,
    read_back,
)

UPDATES = 4
MEASURED_S = 5.0


def rehearse(config: Config, workdir: Path) -> None:
    """Tries all stages, prints a line for each and what the budget will buy.

    What it writes is in a folder beside the workdir that is deleted in the end; only
    compiled programs stay, in `config.compilation_cache`.

    Raises:
      UserError: what would end the run, or its disk being too small.
    """
    config = as_recorded(config, workdir)
    check_workdir(workdir, config)
    check_platform(config)
    use_cache(config.compilation_cache)
    place = nearest_folder(workdir)
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=place) as folder:
        scratch = Path(folder)
        beginning = sample.read(config, lambda line: _say("text", line))
        evaluate.check(config)
        named = ", ".join(task.title for task in tasks.get(config.glue))
        _say("fine-tuning data", f"readable: {named}" if named else "no tasks")
        corpus = sample.pack(config, beginning, scratch)
        blocks = len(corpus.train) + len(corpus.held_out)
        _say("corpus", f"{beginning.chars:,} characters make {blocks:,} blocks")
        _check_disk(config, place, beginning, corpus)
        config = tuning.choose(config)
        with Ahead() as ahead:
            config = _each_step_an_update(config)
            ahead.start(config)
            with out_of_memory_explained(config):
                seconds_per_step = _try_step(config, ahead)
            weights = _try_training(config, corpus, scratch, ahead)
        _try_fine_tuning(config, weights, corpus, scratch)
        _say("budget", estimate(config, seconds_per_step, ahead.result().compile_s))


def _say(stage: str, text: str) -> None:
    print(f"rehearsal: {stage}: {text}", flush=True)


def _check_disk(config: Config, place: Path, text: Sample, corpus: Corpus) -> None:
    """Compares what will be written with what is free.

    Raises:
      UserError: it will not fit.
    """
    state = sum(state_bytes(config).values())
    # A new checkpoint is whole before the oldest one is deleted.
    needed = (config.checkpoint.keep + 1) * state
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"config.checkpoint.keep is {config.checkpoint.keep}: {needed / 1e9:.1f} "
            f"GB of checkpoints, and {place} has {free / 1e9:.1f} GB left: make room, "
            "or pass another --workdir"
        )
    _say("disk", f"checkpoints {needed / 1e9:.1f} of {free / 1e9:.1f} GB free")
    folder = Path(config.data.dir).expanduser()
    nearest = nearest_folder(folder)
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(
            f"config.data.dir is {config.data.dir!r}: cannot be written; pass another "
            "one"
        )
    free = shutil.disk_usage(nearest).free
    if text.all_chars is None:
        _say("disk", f"the corpus, not known how much, of {free / 1e9:.1f} GB free")
        return
    tokens = sum(corpus.manifest["tokens"].values()) / text.chars
    size = np.dtype(token_dtype(config.model.vocab_size)).itemsize
    needed = text.all_chars * tokens * size
    if needed > free and not any(folder.glob(f"*/{MANIFEST}")):
        raise UserError(
            f"config.data.dir is {config.data.dir!r}: it has {free / 1e9:.1f} GB left, "
            f"and the corpus takes {needed / 1e9:.1f} or so: make room, or pass "
            "another one"
        )
    _say("disk", f"corpus {needed / 1e9:.1f} or so of {free / 1e9:.1f} GB free")


def _each_step_an_update(config: Config) -> Config:
    batch = dataclasses.replace(
        config.batch, sequences=config.micro_batch, ramp_share=0.0
    )
    stages = dataclasses.replace(config.curriculum, lengths=(), starts=())
    return dataclasses.replace(config, batch=batch, curriculum=stages)


def _try_step(config: Config, ahead: Ahead) -> float:
    """Returns the seconds of a micro-step."""
    step = ahead.result()
    needed = tuning.needed_bytes(config, step)
    seconds = tuning.seconds_per_step(config, step, MEASURED_S)
    tokens = config.micro_batch * config.model.max_length
    per_token = train_flops_per_token(config.model, config.objective.max_mask_rate)
    mfu = throughput.mfu(tokens * per_token, seconds)
    _say(
        "training step",
        f"compiled in {step.compile_s:.0f} s; {config.micro_batch} x "
        f"{config.model.max_length} tokens need {needed / 1e9:.1f} of the "
        f"{tuning.memory_limit_bytes() / 1e9:.1f} GB to be used; "
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
    config: Config, weights: dict[str, Any], corpus: Corpus, scratch: Path
) -> None:
    """Takes one step of the first task, with all its trials, and scores it."""
    if not config.glue.tasks:
        return
    glue = dataclasses.replace(
        config.glue,
        **{"tasks": config.glue.tasks[:1], "starts": config.glue.starts[:1]},
        **{"learning_rates": config.glue.learning_rates[:1], "test_sets": False},
        **{"epochs": 1, "max_train_rows": config.glue.batch_size},
    )
    trial = dataclasses.replace(config, glue=glue)
    start = time.monotonic()
    results = evaluate.evaluate(
        trial, weights, corpus.tokenizer, scratch / "run", say=lambda line: None
    )
    scored = ", ".join(entry["title"] for entry in results.values())
    _say(
        "fine-tuning",
        f"one step of {glue.trials} trials, {scored} scored, "
        f"{time.monotonic() - start:.0f} s",
    )


def estimate(config: Config, seconds_per_step: float, compile_s: float) -> str:
    """Returns what the budget will buy, or take, at this speed."""
    tokens_per_s = config.micro_batch * config.model.max_length / seconds_per_step
    budget = config.budget
    if budget.kind == "hours":
        tokens = max(budget.hours * 3600 - compile_s, 0) * tokens_per_s
        return f"{budget.hours:g} hours buy about {tokens:.2g} tokens"
    per_token = train_flops_per_token(config.model, config.objective.max_mask_rate)
    tokens = budget.tokens or budget.flops / per_token
    minutes = (tokens / tokens_per_s + compile_s) / 60
    return f"{tokens:.3g} tokens take about {minutes:,.1f} minutes"

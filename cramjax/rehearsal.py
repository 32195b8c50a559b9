"""A whole run for a moment, before a day is spent on it: `run` on a shrunken config."""

import contextlib
import dataclasses
import io
import json
import logging
import math
import shutil
import signal
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from cramjax.checkpoints import initial
from cramjax.config import BudgetConfig, Config, DataConfig
from cramjax.data import sources
from cramjax.data.corpus import TOKENIZER
from cramjax.data.prepare import corpus_path, prepare, train_tokenizer
from cramjax.data.readers import ReadContext
from cramjax.describe import state_bytes
from cramjax.device import monitor, tuning
from cramjax.device.compile import use_cache
from cramjax.errors import Interrupted, UserError
from cramjax.glue import evaluate, tasks
from cramjax.model.flops import train_flops_per_token
from cramjax.run import as_recorded, check, nearest_folder, run
from cramjax.tokens import token_dtype
from cramjax.training import log, train_step
from cramjax.training.clock import tokens_bought
from cramjax.training.pretrain import CHECKPOINTS, METRICS, read_back

logger = logging.getLogger(__name__)

UPDATES = 8
SAMPLE_CHARS = 2_000_000  # of text, from all sources together
PARTS_OPENED = 8  # of a source, spread over it
PIECES = 100  # the sample becomes at least this many documents: some are held out
CHARS_PER_ENTRY = 100  # of the sample, for its tokenizer


def rehearse(config: Config, workdir: Path) -> None:
    """Tries all stages, prints a line for each and what the budget will buy.

    It writes to a temporary folder beside the workdir; only compiled programs stay, in
    `config.compilation_cache`, and what TFDS prepares.

    Raises:
      UserError: what would end the run (a line for each problem that can be seen
        without trying), or a disk that is too small.
      Interrupted: a signal arrived.
    """
    config, _ = initial.begin(config, workdir)
    config = as_recorded(config, workdir)
    found = check(config, workdir, partial(_check_workdirs_disk, config, workdir))
    use_cache(config.compilation_cache)
    parent, message = nearest_folder(workdir), "a rehearsal leaves nothing behind"
    try:
        with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=parent) as scratch:
            _try_all(config, found, Path(scratch))
    except Interrupted as error:
        raise Interrupted(f"interrupted: {message}", error.exit_code - 128) from error
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        raise Interrupted(f"interrupted: {message}", number) from error


def _try_all(config: Config, found: list[tasks.Task], scratch: Path) -> None:
    texts, all_chars = _sample(config)
    complete = evaluate.fetch(config, found)
    named = ", ".join(task.title for task in complete)
    _report("fine-tuning data", f"readable: {named}" if named else "no tasks")
    data = _sample_data(config, texts, scratch)
    with contextlib.redirect_stdout(io.StringIO()):
        corpus = prepare(dataclasses.replace(config, data=data))
    blocks, chars = len(corpus.train) + len(corpus.held_out), sum(map(len, texts))
    _report("corpus", f"{chars:,} characters make {blocks:,} blocks")
    all_tokens = all_chars * sum(corpus.manifest["tokens"].values()) / chars
    _check_corpus_disk(config, all_tokens)
    config = tuning.choose(config, train_step.build)
    small = _shrunken(config, data, complete)
    shape = f"{config.micro_batch} x {config.model.max_length}"
    _report("run", f"{UPDATES} steps of {shape} tokens, one of fine-tuning ...")
    with contextlib.redirect_stdout(io.StringIO()):
        named_params = run(small, scratch / "run")
    seconds_per_step, compile_s = _report_training(small, named_params, scratch / "run")
    if complete:
        tried = json.loads((scratch / "run" / evaluate.RESULTS).read_text())["tasks"]
        titles = ", ".join(scored["title"] for scored in tried.values())
        hours = evaluate.estimate_s(config, complete, corpus.tokenizer) / 3600
        whole = f"{hours:.1f} hours" if hours > 2 else f"{60 * hours:.1f} minutes"
        _report(
            "fine-tuning",
            f"one step of {config.glue.trials} trials, scored on {titles}; an estimate "
            f"of the whole: {whole}",
        )
    _report("budget", estimate(config, seconds_per_step, compile_s, all_tokens))


def _report(stage: str, text: str) -> None:
    logger.info(f"rehearsal: {stage}: {text}")


def _sample(config: Config) -> tuple[list[str], float]:
    """Returns the first documents of all sources, and about all their characters."""
    found = [
        file
        for file in sources.resolve(config.data)
        if 0 not in (file.max_chars, file.max_documents)
    ]
    texts = []
    for number, name in enumerate(config.data.sources):
        of_source = [file for file in found if file.source == number]
        opened = of_source[:: max(-(-len(of_source) // PARTS_OPENED), 1)]
        context, count = ReadContext(config.data), len(texts)
        for file in opened:
            left = SAMPLE_CHARS // len(config.data.sources) // len(opened)
            for text in file.documents(context):
                texts.append(text[:left])
                left -= len(text)
                if left <= 0:
                    break
        problems = sorted(context.problems.items())
        notes = "".join(f"; {problem}: {times:,}" for problem, times in problems)
        if opened and count == len(texts):
            raise UserError(
                f"config.data.sources: no text at the beginning of {name!r}{notes}; "
                "see data.txt_documents, data.text_field and data.keep in "
                "cramjax/config/data.py for what is a document"
            )
        _report(
            "text",
            f"{name}: {len(texts) - count:,} documents at the beginning of "
            f"{len(opened):,} of {len(of_source):,} parts{notes}",
        )
    document_chars = sum(map(len, texts)) / max(len(texts), 1)
    return texts, sum(file.expected_chars(document_chars) for file in found)


def _sample_data(config: Config, texts: list[str], scratch: Path) -> DataConfig:
    """Returns the data section with the sample as its text, in small documents.

    A sample does not fill a large vocabulary: its tokenizer gets unused entries.
    """
    chars = sum(map(len, texts))
    piece = max(chars // PIECES, 200)
    with (scratch / "sample.jsonl").open("w") as file:
        for text in texts:
            for start in range(0, len(text), piece):
                print(json.dumps({"text": text[start : start + piece]}), file=file)
    given = config.data
    data = DataConfig(
        sources=(str(scratch / "sample.jsonl"),),
        dir=str(scratch / "data"),
        normalizer=given.normalizer,
        tokenizer=given.tokenizer,
        tokenizer_kind=given.tokenizer_kind,
        cls=given.cls,
        sep=given.sep,
        order=given.order,
        max_tokens_per_char=0.0,
        held_out_share=0.2,
    )
    if data.tokenizer:
        return data
    size = config.model.vocab_size
    entries = min(size, max(chars // CHARS_PER_ENTRY, 512))
    model = dataclasses.replace(config.model, vocab_size=entries)
    few = dataclasses.replace(config, data=data, model=model)
    trained = Tokenizer.from_str(train_tokenizer(few, sources.resolve(data)))
    trained.add_tokens([f"<unused-{i}>" for i in range(size - entries)])
    path = str(scratch / TOKENIZER)
    trained.save(path)
    return dataclasses.replace(data, tokenizer=path)


def _shrunken(config: Config, data: DataConfig, complete: list[tasks.Task]) -> Config:
    """Returns the config for a few updates, and one step of the smallest task."""
    rows, replace = config.micro_batch, dataclasses.replace
    glue = replace(config.glue, tasks=())
    if complete:
        smallest = min(complete, key=lambda task: sum(s.rows for s in task.dev))
        glue = replace(
            config.glue,
            tasks=(smallest.name,),
            max_train_rows=config.glue.batch_size,
            epochs=1,
            trials_at_once=config.glue.trials_at_once or config.glue.trials,
            starts=config.glue.starts[:1],
            learning_rates=config.glue.learning_rates[:1],
        )
    return replace(
        config,
        data=data,
        glue=glue,
        budget=BudgetConfig(
            hours=0.0, tokens=UPDATES * rows * config.model.max_length, flops=0.0
        ),
        batch=replace(config.batch, sequences=rows, ramp_share=0.0),
        curriculum=replace(config.curriculum, lengths=(), starts=()),
        guard=replace(config.guard, max_loss=0.0),
        log=replace(config.log, every_steps=1, trackers=()),
        profile=replace(config.profile, steps=()),
        validation=replace(config.validation, max_blocks=rows),
    )


def _report_training(
    config: Config, named_params: dict[str, Any], workdir: Path
) -> tuple[float, float]:
    """Prints how training went; returns seconds per step, and of compilation."""
    restored, summary = read_back(config, workdir)
    lines = [line for line in log.read(workdir / METRICS) if "event" not in line]
    step_s = median(b["elapsed_s"] - a["elapsed_s"] for a, b in pairwise(lines))
    mfu = monitor.mfu(summary["model_flops"] / UPDATES, step_s)
    peak, spent = summary["peak_memory_bytes"], summary["seconds"]
    loss = math.nan if summary["train_loss"] is None else summary["train_loss"]
    _report(
        "training",
        f"compiled in {spent['compilation']:.0f} s; "
        + (f"{_size(peak)} of {_size(tuning.device_bytes())} used; " if peak else "")
        + f"{summary['tokens'] / UPDATES / step_s:,.0f} tokens/s"
        + (f", mfu {mfu:.0%}" if mfu else "")
        + f"; {summary['updates']} updates, loss {loss:.2f}, held out "
        f"{summary['held_out_loss']:.2f}",
    )
    folder = workdir / CHECKPOINTS
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), named_params, restored)
    if not all(jax.tree.leaves(equal)):
        raise UserError(
            f"{folder} is not read as it was written: pass a --workdir on another disk"
        )
    _report(
        "checkpoint",
        f"{_size(_bytes_in(folder))} written in {spent['checkpoints']:.1f} s, read "
        "back equal",
    )
    return step_s, spent["compilation"]


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_workdirs_disk(config: Config, workdir: Path) -> None:
    state = sum(state_bytes(config).values())
    # A new checkpoint is complete before the oldest one is deleted.
    needed = (config.checkpoint.keep + 1) * state - _bytes_in(workdir / CHECKPOINTS)
    wrong = f"config.checkpoint.keep is {config.checkpoint.keep}"
    _check_disk(workdir, "checkpoints", max(needed, state), wrong, "--workdir")


def _check_corpus_disk(config: Config, tokens: float) -> None:
    folder = Path(config.data.dir).expanduser()
    needed = tokens * np.dtype(token_dtype(config.model.vocab_size)).itemsize
    if not (sources.known(config.data) and corpus_path(config).exists()):
        wrong = f"config.data.dir is {config.data.dir!r}"
        _check_disk(folder, "the corpus", needed, wrong, "--config.data.dir")


def _check_disk(folder: Path, what: str, needed: float, wrong: str, flag: str) -> None:
    """Refuses to write more bytes than are free; the message begins with `wrong`."""
    nearest = nearest_folder(folder)
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise UserError(
            f"{wrong}: {what} will take {_size(needed)}, and {nearest} has "
            f"{_size(free)} left: make room, or pass another {flag}"
        )
    _report("disk", f"{what} will take {_size(needed)} of {_size(free)} free")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def estimate(
    config: Config, seconds_per_step: float, compile_s: float, all_tokens: float
) -> str:
    """Returns what the budget will buy, or take, at the speed of a micro-step.

    Compilation takes `compile_s` of the budget; the text has about `all_tokens`.
    """
    budget = config.budget
    tokens_per_s = config.micro_batch * config.model.max_length / seconds_per_step
    per_token = train_flops_per_token(config.model, config.objective.max_mask_rate)
    tokens = tokens_bought(budget, tokens_per_s, per_token)
    if budget.kind == "hours":
        tokens = max(tokens - compile_s * tokens_per_s, 0)
        bought = f"{budget.hours:g} hours buy about {tokens:.2g} tokens"
    else:
        minutes = (tokens / tokens_per_s + compile_s) / 60
        bought = f"{tokens:.3g} tokens take about {minutes:,.1f} minutes"
    passes = tokens / all_tokens
    return bought + (f", {passes:.2g} passes over the text" if passes > 1 else "")

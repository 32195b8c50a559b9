"""Raw text to a packed corpus: read, deduplicate, train a tokenizer, encode, pack."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from cramjax import files, progress
from cramjax.config import Config
from cramjax.data import (
    corpus,
    dedup,
    encode,
    remote,
    report,
    sources,
    stages,
    tokenizer,
)
from cramjax.data.corpus import MANIFEST, TOKENIZER, Corpus
from cramjax.data.readers import DOCUMENT_CHARS, EXPANSION, File, ReadContext
from cramjax.data.stages import Stage, Unit
from cramjax.errors import SourceLost, UserError
from cramjax.tokens import token_dtype

logger = logging.getLogger(__name__)

SHARD_CHARS = 1 << 25  # text of a shard: about 16 MiB of blocks
SHOWN_EVERY_S = 2.0
# Files of an unfinished corpus; the last are those of workers that were killed.
TEMPORARY = (encode.FACTS, "group-*", dedup.CUTS, dedup.FOUND, "*.partial")
# The stages of a build; those of `dedup` only with deduplication.
STAGES = ("sources", *dedup.STAGES, "tokenizer", "blocks", "manifest")
TOKENS_PER_CHAR = 0.3  # of English, for estimates
CHECK_CHARS = 1 << 20  # of text, on which the normalizer is tried
MAX_REMOVED = 0.1  # the fraction of the characters that it may remove
# The tokenizer reads longer words as <unk>, and training takes the square of their
# length: a line of base64 would stop it.
_LONG_WORD = re.compile(r"\w{101,}|[^\w\s]{101,}")


def corpus_path(config: Config) -> Path:
    """Returns the folder of the packed corpus that a config asks for.

    Its name ends in a hash of everything that changes the blocks: the contents of the
    files, in their order, and the settings; but not the order, the seed, or where the
    files are.

    Raises:
      UserError: a source cannot be read, or `data.dir` cannot be written.
    """
    with _writing(config):
        return _plan(config).path


class Plan(NamedTuple):
    """A corpus that a config asks for: the text of it, and its folder."""

    config: Config
    text_files: list[File]
    contents: list[dict[str, Any]]  # see `sources.contents`
    path: Path

    @property
    def building(self) -> Path:
        """The folder in which the corpus is built."""
        return self.path.with_name(f"{self.path.name}.partial")


def _plan(config: Config) -> Plan:
    text_files = sources.resolve(config.data)
    contents = sources.contents(text_files, config.data)
    of_files = [
        [Path(c["path"]).suffixes, c["sha256"], f.source, f.max_chars, f.max_documents]
        for f, c in zip(text_files, contents, strict=True)
    ]
    key = [corpus.settings(config), of_files]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    name = config.data.sources[0] if text_files[0].url else text_files[0].path.name
    stem = re.sub(r"\W+", "-", name.split(".")[0])
    path = Path(config.data.dir).expanduser() / f"{stem}-{digest}"
    return Plan(config, text_files, contents, path)


@contextlib.contextmanager
def _writing(config: Config) -> Iterator[None]:
    """Reports that `data.dir` cannot be written, for lack of room or of rights.

    A file of text that cannot be read raises `SourceLost`, not an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"config.data.dir is {config.data.dir!r}: cannot be written ({error}); "
            "make room or pass another one, and the same command continues with what "
            "is finished"
        ) from error


def check(config: Config) -> None:
    """Checks that the text is available, before anything is built.

    A corpus that exists needs no server. Sources of TFDS are not looked up: that could
    prepare a data set.

    Raises:
      UserError: a file is missing, a server cannot be reached or refuses access, or
        `data.dir` cannot be written.
    """
    checked = [s for s in config.data.sources if not s.startswith("tfds:")]
    if not checked:
        return
    with _writing(config):
        text_files = sources.resolve(
            dataclasses.replace(config.data, sources=tuple(checked), shares=())
        )
        first = {file.source: file.url for file in reversed(text_files) if file.url}
        mixed = len(checked) < len(config.data.sources)
        if first and not mixed and corpus_path(config).exists():
            return
    for url in first.values():
        remote.probe(url)


def prepare(config: Config) -> Corpus:
    """Returns the packed corpus of a config, and builds it if it does not exist.

    It is built in a folder beside it, the name of which ends in ".partial": after an
    interruption, the same call continues with the shards that are not finished. A
    corpus that exists is read once, to compare its checksums.

    Its manifest holds `documents` (train, held_out, filtered), `tokens` (train,
    held_out), `bytes`, `problems` (what was broken in the text, and how often),
    `unigram_entropy` (nats per token of the training blocks), `shards`, `sources`,
    `settings` and, with deduplication, `duplicates` (see `dedup.deduplicated`).
    report.md beside it describes what is in the corpus.

    Raises:
      UserError: a source cannot be read, `data.dir` cannot be written or is full, the
        corpus is damaged or too small for one training and one held-out block, or the
        vocabulary does not fit the text.
    """
    with _writing(config):
        plan = _plan(config)
        path = plan.path
        with contextlib.ExitStack() as stack:
            if not path.exists():
                stack.enter_context(_lock(path))
                stack.enter_context(_progress_shown(plan))
            exists = path.exists()  # another process may have built it meanwhile
            try:
                stages.run(_build(plan))
            except SourceLost:
                raise
            except UserError:  # the text or the settings are of no use
                shutil.rmtree(plan.building, ignore_errors=True)
                raise
        stages.remove(path, TEMPORARY)
    prepared = Corpus(path)
    if exists:
        logger.info(f"corpus: {path} (found)")
        prepared.verify()
    return prepared


@contextlib.contextmanager
def _progress_shown(plan: Plan) -> Iterator[None]:
    """Shows how much of the text is in finished shards, which any process may write."""
    expected = sum(file.expected_chars(DOCUMENT_CHARS) for file in plan.text_files)
    chars_of: dict[Path, int] = {}  # {facts of a shard: its characters}
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(SHOWN_EVERY_S):
            for path in {*plan.building.glob(encode.FACTS)} - chars_of.keys():
                with contextlib.suppress(OSError):  # the folder gets its final name
                    chars_of[path] = json.loads(path.read_text())["chars"]
            done = sum(chars_of.values())
            stage.update(
                min(done / max(expected, 1), 0.999),
                f"{done / 1e6:,.0f} of about {expected / 1e6:,.0f} million characters",
            )

    with progress.Stage("corpus") as stage:
        thread = threading.Thread(target=show, daemon=True)
        try:
            thread.start()
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other process builds the corpus."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"corpus: another process is building {path}, waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        # A waiting process will find the corpus.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def prepare_as_task(config: Config, task: int, tasks: int, stage: str = "") -> None:
    """Does a part of `prepare`, as one of several tasks that share `data.dir`.

    Nothing is locked, and the corpus is the same, to the byte, for any number of tasks.
    After an interruption, the same call continues.

    See `stages.run_task` for `task`, `tasks` and `stage`, one of `STAGES` or "".

    Raises:
      UserError: see `prepare`; or a stage before `stage` is not finished.
    """
    with _writing(config):
        until = STAGES.index(stage or STAGES[-1])
        needed = itertools.takewhile(
            lambda following: STAGES.index(following[0]) <= until, _stages(config)
        )
        stages.run_task(needed, task, tasks, stage)
        if stage in ("", STAGES[-1]):
            path = corpus_path(config)
            stages.remove(path, TEMPORARY)
            logger.info(f"corpus: {path}")


def _stages(config: Config) -> Iterator[Stage]:
    done = functools.partial(sources.known, config.data)
    yield "sources", [Unit(done, corpus_path, (config,))]
    yield from _build(_plan(config))


def _build(plan: Plan) -> Iterator[Stage]:
    """Yields the stages that build a corpus, unless it exists."""
    config, text_files, _, path = plan
    if path.exists():
        return
    folder = plan.building
    folder.mkdir(parents=True, exist_ok=True)
    if any(file.url for file in text_files):
        logger.info(f"corpus: {_size_estimate(config, text_files)}")
    to_encode, duplicates = list(text_files), {}
    if dedup.is_on(config.data):
        yield from dedup.stages(text_files, config.data, folder)
        if path.exists():  # other tasks have finished it meanwhile
            return
        to_encode, duplicates = dedup.deduplicated(text_files, folder)
    groups = sources.grouped(to_encode)
    done = stages.exists(folder / TOKENIZER)
    yield "tokenizer", [Unit(done, _make_tokenizer, (config, groups, folder))]
    units = []
    for number, group in enumerate(groups):
        done = stages.exists(encode.group_facts(number, folder))
        call = (number, group, config, folder, SHARD_CHARS)
        units.append(Unit(done, encode.encode_group, call))
    yield "blocks", units
    final = (plan, duplicates, len(groups))
    yield "manifest", [Unit(stages.exists(path), _finish, final)]


def _finish(plan: Plan, duplicates: dict[str, Any], groups: int) -> None:
    """Writes the manifest and the report, and gives the folder its name."""
    config, text_files, contents, path = plan
    folder = plan.building
    if sources.contents(text_files, config.data) != contents:
        raise UserError(
            "config.data.sources: a file has changed while it was read; run again when "
            "all are complete"
        )
    shards = []
    counts_V = np.zeros(config.model.vocab_size, np.int64)
    for number in range(groups):
        facts = encode.group_facts(number, folder)
        hint = f"delete {folder} and run again"
        shards += files.read_json(facts, hint)["shards"]
        counts_V += np.load(facts.with_suffix(".npy"))
    manifest = corpus.make_manifest(
        config, shards, contents, counts_V, duplicates, folder / TOKENIZER
    )
    files.write_record(folder / MANIFEST, manifest)
    built = Corpus(folder)
    report.write(built, counts_V, shards)
    folder.rename(path)
    for line in corpus.summary_lines(config, built):
        logger.info(f"corpus: {line}")


def _size_estimate(config: Config, text_files: Sequence[File]) -> str:
    """Returns about how much network and disk the corpus takes."""
    downloaded = [file for file in text_files if file.url]
    read = sum(
        file.expected_chars(DOCUMENT_CHARS) / EXPANSION.get(file.path.suffix, 1)
        for file in downloaded
    )
    chars = sum(file.expected_chars(DOCUMENT_CHARS) for file in text_files)
    token_bytes = np.dtype(token_dtype(config.model.vocab_size)).itemsize
    disk = chars * (config.data.max_tokens_per_char or TOKENS_PER_CHAR) * token_bytes
    twice = ""
    if config.data.dedup_bytes:
        disk, twice = disk + chars, ", twice to find duplicates"
    return (
        f"downloads about {read / 1e9:.2g} GB from {len(downloaded)} files{twice}, and "
        f"takes up to {disk / 1e9:.2g} GB of disk in {config.data.dir}"
    )


def _make_tokenizer(
    config: Config, groups: Sequence[Sequence[File]], folder: Path
) -> None:
    """Writes the tokenizer, trained on a sample of the text or taken from another.

    It stays as it is if it exists.

    Raises:
      UserError: there is no text, its vocabulary is too small or too large, or the
        normalizer removes much of it; or `config.data.tokenizer` does not fit.
    """
    if (folder / TOKENIZER).exists():
        return
    start = time.monotonic()
    data, vocab_size = config.data, config.model.vocab_size
    text_files = list(itertools.chain.from_iterable(groups))
    _check_normalizer(config, text_files)
    if data.tokenizer:
        path = Path(data.tokenizer).expanduser()
        as_json = tokenizer.adopt(
            path, vocab_size, data.normalizer, data.tokenizer_kind
        )
    elif len(groups) == 1:
        as_json = train_tokenizer(config, text_files)
    else:  # in a process of its own, which returns its memory and can be interrupted
        with stages.worker_pool(1, stages.cores()) as pool:
            as_json = pool.submit(train_tokenizer, config, text_files).result()
    files.write_text(folder / TOKENIZER, as_json)
    logger.info(f"tokenizer: {vocab_size} entries, {time.monotonic() - start:.0f}s")


def train_tokenizer(config: Config, text_files: Sequence[File]) -> str:
    """Returns, as JSON, a tokenizer trained on the beginning of every file.

    Each gives `data.tokenizer_chars` by its weight; held-out documents give nothing.

    Raises:
      UserError: see `tokenizer.train`.
    """
    data = config.data
    weights = [file.weight for file in text_files]
    chars_of_files = sources.spread(data.tokenizer_chars, weights, 1)

    def sample() -> Iterator[str]:
        for file, left in zip(text_files, chars_of_files, strict=True):
            if not left:
                continue
            for text in file.documents(ReadContext(data)):
                if not encode.is_held_out(text, data.held_out_share):
                    yield _LONG_WORD.sub(" ", text[:left])
                left -= len(text)
                if left <= 0:
                    break

    size, kind = config.model.vocab_size, data.tokenizer_kind
    return tokenizer.train(sample, size, data.normalizer, kind).to_str()


def _check_normalizer(config: Config, text_files: Sequence[File]) -> None:
    """Refuses to throw away all text, or much of it (as of a non-Latin script)."""
    data, context = config.data, ReadContext(config.data)
    normalizer = tokenizer.normalizer(data.normalizer)
    chars_of_files = sources.spread(CHECK_CHARS, [file.weight for file in text_files])
    before = after = 0
    for file, chars in zip(text_files, chars_of_files, strict=True):
        limit = chars if file.max_chars is None else min(chars, file.max_chars)
        beginning = dataclasses.replace(file, max_chars=limit)
        for text in beginning.documents(context):
            text = re.sub(" {2,}", " ", text[:CHECK_CHARS])
            before += len(text)
            after += len(normalizer.normalize_str(text))
    if not before and not any(True for f in text_files for _ in f.documents(context)):
        reasons = [*context.problems]
        if context.left_out:
            reasons.append(f"the first record left out has {context.left_out}")
        raise UserError(
            f"config.data.sources: no text in {data.sources} ({'; '.join(reasons)}); "
            f"see data.txt_documents, data.text_field and data.keep={data.keep} in "
            "cramjax/config/data.py for what is a document"
        )
    if after < (1 - MAX_REMOVED) * before:
        kept = [s for s in data.normalizer if s not in ("ascii", "strip_accents")]
        raise UserError(
            f"config.data.normalizer removes {1 - after / before:.0%} of the text's "
            "characters (a non-Latin script?): to keep them, pass "
            f'--config.data.normalizer="{tuple(kept)!r}"'
        )

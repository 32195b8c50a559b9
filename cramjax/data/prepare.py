"""Raw text to a packed corpus: read, train tokenizer, encode, filter, pack."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from cramjax import files
from cramjax.data import (
    dedup,
    encoding,
    manifest,
    processes,
    report,
    sources,
    tokenizer,
    vocabulary,
)
from cramjax.data.corpus import MANIFEST, TOKENIZER, Corpus
from cramjax.data.encoding import Settings, Unit
from cramjax.data.filters import Filters
from cramjax.data.fingerprints import Fingerprints
from cramjax.data.packing import token_dtype
from cramjax.data.readers import Reading
from cramjax.data.remote import RemoteFile
from cramjax.data.sources import Portion
from cramjax.errors import SourceLost, UserError
from cramjax.schema import Config

SHARD_CHARS = 1 << 25  # text of a shard: about 16 MiB of blocks
TEMPORARY = ("facts-*.json", "counts-*.npy", "cuts-*.npy", dedup.FOUND)
SOME = 100  # documents, for how long they are
MAX_TOKENS_PER_CHAR = 0.3  # of English, roughly
UNIT_BYTES = 1 << 24  # smaller files are encoded together


def corpus_path(config: Config) -> Path:
    """Returns the folder of the packed corpus that a config asks for.

    Its name ends in a hash of all that changes the blocks: the files' contents, in
    their order, and the settings. Order and seed are not among them, nor where the
    files are.
    """
    portions, found = portions_of(config)
    contents = [
        [Path(f["path"]).suffixes, f["sha256"], p.source, p.max_chars, p.max_documents]
        for p, f in zip(portions, found, strict=True)
    ]
    key = [manifest.settings(config), contents]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    remote = isinstance(portions[0].part, RemoteFile)
    name = config.data.sources[0] if remote else Path(found[0]["path"]).name
    stem = re.sub(r"\W+", "-", name.split(".")[0])
    return Path(config.data.dir).expanduser() / f"{stem}-{digest}"


def check(config: Config) -> None:
    """Looks, within seconds, whether the text can be had, before anything is built.

    A corpus that is there needs no server; a data set of TFDS is not looked for.

    Raises:
      UserError: a file is missing, a server cannot be reached or refuses to give it, or
        `data.dir` cannot be written.
    """
    files_of = [s for s in config.data.sources if not s.startswith("tfds:")]
    with_tfds = len(files_of) < len(config.data.sources)
    if with_tfds and not files_of:
        return
    data = dataclasses.replace(config.data, sources=tuple(files_of), shares=())
    known = Fingerprints(Path(data.dir).expanduser())
    portions = sources.resolve(data, known)
    known.save()
    first = {p.source: p.part for p in reversed(portions)}.values()
    servers = [part for part in first if isinstance(part, RemoteFile)]
    if not servers or not with_tfds and (corpus_path(config) / MANIFEST).exists():
        return
    for part in servers:
        part.probe()


def portions_of(config: Config) -> tuple[list[Portion], list[dict[str, Any]]]:
    """Returns the parts to read, and what is known of each."""
    known = Fingerprints(Path(config.data.dir).expanduser())
    portions = sources.resolve(config.data, known)
    found = [portion.part.facts(known) for portion in portions]
    known.save()
    return portions, found


def prepare(config: Config, say: Callable[[str], None] = print) -> Corpus:
    """Returns the packed corpus of a config, and builds it if it is not there.

    It is built in a folder beside, whose name ends in ".partial": stopped at any
    moment, the same call goes on with the shards that are not finished. One that is
    found is read once, to compare its checksums.

    Its manifest holds `documents` (train, held_out, filtered), `tokens` (train,
    held_out), `bytes`, `problems` (what was broken in the text, and how often),
    `unigram_entropy` (nats per token of the training blocks), `shards`, `sources`,
    `settings` and, if asked for, `duplicates` (see `dedup.find`). report.md beside it
    tells what is in the corpus.

    Raises:
      UserError: a source cannot be read, `data.dir` cannot be written or is full, the
        corpus is empty or too small for one training and one held-out block or
        damaged, or the vocabulary does not fit the text.
    """
    path = corpus_path(config)
    building = path.with_name(f"{path.name}.partial")
    if not (path / MANIFEST).exists():
        try:
            with _alone(path, say):
                if not path.exists():
                    building.mkdir(exist_ok=True)
                    _build_whole(config, building, say)
                    building.rename(path)
                    _tidy(path)
                    return Corpus(path)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that encodes text was killed (too little memory?): the same "
                f"command goes on with what is finished in {building}; in a program "
                'of yours, call this under `if __name__ == "__main__":`'
            ) from error
        except OSError as error:
            raise UserError(
                f"config.data.dir is {config.data.dir!r}: cannot be written ({error}); "
                "make room or pass another one, and the same command goes on with "
                "what is finished"
            ) from error
    if not (path / MANIFEST).exists():
        raise UserError(f"{path} has no {MANIFEST}: delete it and run again")
    say(f"corpus: {path} (found)")
    _tidy(path)
    corpus = Corpus(path)
    corpus.verify()
    return corpus


@contextlib.contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process builds the corpus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"corpus: another process is building {path}, waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits sees what was built
        lock.release()


def _tidy(folder: Path) -> None:
    """Removes what only an unfinished corpus needs; others may do so, too."""
    for pattern in TEMPORARY:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _build_whole(config: Config, folder: Path, say: Callable[[str], None]) -> None:
    """Leaves nothing behind if the text or the settings are of no use."""
    try:
        _build(config, folder, say)
    except SourceLost:
        raise
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _build(config: Config, folder: Path, say: Callable[[str], None]) -> None:
    portions, found = portions_of(config)
    rules = dedup.Rules.of(config.data)
    if any(isinstance(portion.part, RemoteFile) for portion in portions):
        say(f"corpus: {_needs(config, portions, rules)}")
    units = units_of(portions)
    duplicates = dedup.find(units, Reading.of(config.data), rules, folder, say)
    vocabulary.make(config, units, folder, say)
    start = time.monotonic()
    by_unit = encode_all(config, units, folder, say)
    if portions_of(config)[1] != found:
        raise UserError(
            "config.data.sources: a file has changed while it was read; run again when "
            "all are complete"
        )
    counts_V = sum(
        encoding.token_counts(number, len(shards), folder)
        for number, shards in enumerate(by_unit)
    )
    facts = manifest.make(
        config, units, by_unit, found, counts_V, duplicates, folder / TOKENIZER
    )
    files.write_json(folder / MANIFEST, facts)
    report.write(Corpus(folder), counts_V, by_unit)
    for path in folder.glob("*.partial"):  # of workers that were killed
        path.unlink()
    first, *others = manifest.lines(config, facts)
    for line in (f"{first}, {time.monotonic() - start:.0f}s", *others):
        say(f"corpus: {line}")


def _needs(config: Config, portions: Sequence[Portion], rules: dedup.Rules) -> str:
    """Returns, roughly, what files behind URLs take in network and disk."""
    remote = [p for p in portions if isinstance(p.part, RemoteFile)]
    document_chars = 0.0
    if config.data.max_documents:
        reading = Reading.of(config.data)
        whole = dataclasses.replace(remote[0], max_chars=None, max_documents=None)
        documents = sources.documents(whole, reading, collections.Counter())
        texts = list(itertools.islice(documents, SOME))
        document_chars = sum(map(len, texts)) / max(len(texts), 1)
    read = sum(
        p.part.size * p.chars_taken(document_chars) / max(p.chars_there, 1)
        for p in remote
    )
    chars = sum(p.chars_taken(document_chars) for p in portions)
    token_bytes = np.dtype(token_dtype(config.model.vocab_size)).itemsize
    disk = chars * (config.data.max_tokens_per_char or MAX_TOKENS_PER_CHAR)
    disk = disk * token_bytes + (chars if rules.min_bytes else 0)
    twice = ", twice to find duplicates" if rules.on else ""
    return (
        f"downloads about {read / 1e9:.2g} GB from {len(remote)} files{twice}, and "
        f"takes up to {disk / 1e9:.2g} GB of disk in {config.data.dir}"
    )


def units_of(portions: Sequence[Portion]) -> list[Unit]:
    """Returns the parts in order, small ones of a source together."""
    groups: list[list[Portion]] = []
    room = 0
    for portion in portions:
        size = portion.part.size
        if not groups or room < size or groups[-1][0].source != portion.source:
            groups.append([])
            room = UNIT_BYTES
        groups[-1].append(portion)
        room -= size
    return [Unit(number, tuple(group)) for number, group in enumerate(groups)]


def encode_all(
    config: Config, units: Sequence[Unit], folder: Path, say: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    """Writes all shards with the folder's tokenizer, as many units at once as cores.

    Returns:
      The facts of every unit's shards, see `encoding.encode_unit`.
    """
    settings = Settings(
        reading=Reading.of(config.data),
        normalizer=tokenizer.all_steps(
            config.data.tokenizer_kind, config.data.normalizer
        ),
        block_length=config.model.max_length,
        vocab_size=config.model.vocab_size,
        filters=Filters.of(config.data),
        cls=config.data.cls,
        sep=config.data.sep,
        held_out_share=config.data.held_out_share,
        shard_chars=SHARD_CHARS,
        cut=dedup.Rules.of(config.data).on,
    )
    cores = processes.cores()
    workers = min(cores, len(units))
    common = (settings, folder, folder / TOKENIZER)
    if workers == 1:
        return [encoding.encode_unit(unit, *common) for unit in units]
    with processes.pool(workers, cores // workers) as pool:
        futures = {pool.submit(encoding.encode_unit, u, *common): u for u in units}
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            size = sum(shard["bytes"] for shard in future.result())
            say(f"corpus: {done} of {len(units)} parts, this one {size / 1e6:,.0f} MB")
        return [future.result() for future in futures]

"""Raw text to a packed corpus: read, train tokenizer, encode, filter, pack."""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from cramjax import files
from cramjax.data import encoding, processes, report, sources, tokenizer
from cramjax.data.corpus import MANIFEST, TOKENIZER, Corpus
from cramjax.data.encoding import Settings, Unit
from cramjax.data.fingerprints import fingerprints
from cramjax.data.packing import token_dtype
from cramjax.data.sources import Reading
from cramjax.errors import UserError
from cramjax.schema import Config

FORMAT = 4  # of the corpus folder; another number is another corpus
SHARD_CHARS = 1 << 25  # text of a shard: about 16 MiB of blocks
CHECK_CHARS = 1 << 20  # text that the normaliser is tried on
MAX_REMOVED = 0.1  # share of the characters it may remove
UNIT_BYTES = 1 << 24  # smaller files are encoded together


def corpus_path(config: Config) -> Path:
    """Returns the folder of the packed corpus that a config asks for.

    Its name ends in a hash of all that changes the blocks: the files' contents, in
    their order, and the settings. Order and seed are not among them, nor where the
    files are.
    """
    paths = sources.resolve(config.data.sources)
    folder = Path(config.data.dir).expanduser()
    contents = [
        [path.suffixes, facts["sha256"]]
        for path, facts in zip(paths, fingerprints(paths, folder), strict=True)
    ]
    key = [_settings(config), contents]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    stem = re.sub(r"\W+", "-", paths[0].name.split(".")[0])
    return folder / f"{stem}-{digest}"


def prepare(config: Config, say: Callable[[str], None] = print) -> Corpus:
    """Returns the packed corpus of a config, and builds it if it is not there.

    It is built in a folder beside, whose name ends in ".partial": stopped at any
    moment, the same call goes on with the shards that are not finished. One that is
    found is read once, to compare its checksums.

    Its manifest holds `documents` (train, held_out, filtered), `tokens` (train,
    held_out), `bytes`, `problems` (what was broken in the text, and how often),
    `unigram_entropy` (nats per token of the training blocks), `shards`, `sources` and
    `settings`. report.md beside it tells what is in the corpus.

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


def _build_whole(config: Config, folder: Path, say: Callable[[str], None]) -> None:
    """Leaves nothing behind if the text or the settings are of no use."""
    try:
        _build(config, folder, say)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _build(config: Config, folder: Path, say: Callable[[str], None]) -> None:
    paths = sources.resolve(config.data.sources)
    sizes = fingerprints(paths, folder.parent)
    words_path = folder / TOKENIZER
    if not words_path.exists():
        start = time.monotonic()
        if config.data.tokenizer:
            words_json = tokenizer.adopt(
                Path(config.data.tokenizer).expanduser(),
                config.model.vocab_size,
                config.data.normalizer,
                config.data.tokenizer_kind,
            )
        elif len(_units(config)) == 1:
            words_json = _train_tokenizer(config)
        else:  # in a process of its own, whose memory is free again afterwards
            with processes.pool(1, processes.cores()) as pool:
                words_json = pool.submit(_train_tokenizer, config).result()
        files.write_text(words_path, words_json)
        say(
            f"tokenizer: {config.model.vocab_size} entries, "
            f"{time.monotonic() - start:.0f}s"
        )
    start = time.monotonic()
    by_unit = encode_all(config, folder, say)
    if fingerprints(paths, folder.parent) != sizes:
        raise UserError(
            "config.data.sources: a file has changed while it was read; run again when "
            "all are complete"
        )
    manifest = _manifest(config, by_unit, sizes)
    counts_V = sum(
        encoding.token_counts(number, len(shards), folder)
        for number, shards in enumerate(by_unit)
    )
    manifest["unigram_entropy"] = unigram_entropy(counts_V)
    files.write_json(folder / MANIFEST, manifest)
    lengths = _total(shard["lengths"] for unit in by_unit for shard in unit)
    report.write(Corpus(folder), counts_V, lengths)
    for pattern in ("facts-*.json", "counts-*.npy", "*.partial"):
        for path in folder.glob(pattern):
            path.unlink()
    documents, shards = manifest["documents"], manifest["shards"]
    say(
        f"corpus: {documents['train']:,} documents in {_blocks(shards['blocks']):,} "
        f"blocks of {config.model.max_length} tokens, {documents['held_out']:,} held "
        f"out in {_blocks(shards['held_out']):,}, {documents['filtered']:,} dropped, "
        f"{time.monotonic() - start:.0f}s"
    )
    for what, count in manifest["problems"].items():
        say(f"corpus: {what} ({count:,})")


def _train_tokenizer(config: Config) -> str:
    """Returns, as JSON, a tokenizer trained on the beginning of every file.

    Each gives `data.tokenizer_chars` by its share of the files' bytes; held-out
    documents give nothing.
    """
    paths = sources.resolve(config.data.sources)
    reading = Reading.of(config.data)
    bytes_of = [path.stat().st_size for path in paths]
    problems: collections.Counter[str] = collections.Counter()

    def sample() -> Iterator[str]:
        for path, size in zip(paths, bytes_of, strict=True):
            left = config.data.tokenizer_chars * size / max(sum(bytes_of), 1)
            for text in sources.read_documents(path, reading, problems):
                if left <= 0:
                    break
                left -= len(text)
                if not encoding.is_held_out(text, config.data.held_out_share):
                    yield text

    if next(sample(), None) is None:
        found = "; ".join(problems)
        raise UserError(
            f"config.data.sources: no text in {', '.join(map(str, paths))} ({found}); "
            "see data.txt_documents and data.text_field in configs/default.py for what "
            "is a document"
        )
    _check_normalizer(config, sample())
    steps, kind = config.data.normalizer, config.data.tokenizer_kind
    return tokenizer.train(sample, config.model.vocab_size, steps, kind).to_str()


def _check_normalizer(config: Config, texts: Iterator[str]) -> None:
    """Refuses to throw away much of the text, as of another script."""
    steps = tokenizer.normalizer(config.data.normalizer)
    before = after = 0
    for text in texts:
        text = re.sub(" {2,}", " ", text)
        before, after = before + len(text), after + len(steps.normalize_str(text))
        if before > CHECK_CHARS:
            break
    if after < (1 - MAX_REMOVED) * before:
        kept = [
            s for s in config.data.normalizer if s not in ("ascii", "strip_accents")
        ]
        raise UserError(
            f"config.data.normalizer removes {1 - after / before:.0%} of the text's "
            "characters (of another script?): to keep them, pass "
            f'--config.data.normalizer="{tuple(kept)!r}"'
        )


def _units(config: Config) -> list[Unit]:
    """Returns the files in order, small ones together."""
    groups: list[list[Path]] = []
    room = 0
    for path in sources.resolve(config.data.sources):
        size = path.stat().st_size
        if not groups or room < size:
            groups.append([])
            room = UNIT_BYTES
        groups[-1].append(path)
        room -= size
    return [Unit(number, tuple(group)) for number, group in enumerate(groups)]


def encode_all(
    config: Config, folder: Path, say: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    """Writes all shards with the folder's tokenizer, as many units at once as cores.

    Returns:
      The facts of every unit's shards, see `encoding.encode_unit`.
    """
    units = _units(config)
    settings = Settings(
        reading=Reading.of(config.data),
        normalizer=tokenizer.all_steps(
            config.data.tokenizer_kind, config.data.normalizer
        ),
        block_length=config.model.max_length,
        vocab_size=config.model.vocab_size,
        max_tokens_per_char=config.data.max_tokens_per_char,
        held_out_share=config.data.held_out_share,
        shard_chars=SHARD_CHARS,
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


def _manifest(
    config: Config,
    by_unit: list[list[dict[str, Any]]],
    found_sources: list[dict[str, Any]],
) -> dict[str, Any]:
    shards = list(itertools.chain.from_iterable(by_unit))
    documents = _total(shard["documents"] for shard in shards)
    parts = {part: [s[part] for s in shards] for part in ("blocks", "held_out")}
    length = config.model.max_length
    for part, what in (("blocks", "training"), ("held_out", "held-out")):
        if not _blocks(parts[part]):
            raise UserError(
                f"config.data.sources: {sum(documents.values())} documents (of them "
                f"{documents['filtered']} dropped by config.data.max_tokens_per_char="
                f"{config.data.max_tokens_per_char:g}, {documents['held_out']} held "
                f"out by config.data.held_out_share={config.data.held_out_share:g}) "
                f"leave no {what} block of {length} tokens: add text or change these "
                "keys (config.data.txt_documents says what ends a document in .txt)"
            )
    return {
        "format": FORMAT,
        "settings": _settings(config),
        "sources": found_sources,
        "block_length": length,
        "vocab_size": config.model.vocab_size,
        "dtype": token_dtype(config.model.vocab_size),
        "shards": parts,
        "documents": documents,
        "bytes": sum(shard["bytes"] for shard in shards),
        "problems": _total(shard["problems"] for shard in shards),
        "tokens": {
            "train": _blocks(parts["blocks"]) * length,
            "held_out": _blocks(parts["held_out"]) * length,
        },
    }


def _total(counts: Any) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def _blocks(shards: list[dict[str, Any]]) -> int:
    return sum(shard["blocks"] for shard in shards)


def unigram_entropy(counts_V: np.ndarray) -> float:
    """Returns the entropy of the tokens' frequencies, in nats."""
    p = counts_V[counts_V > 0] / counts_V.sum()
    return float(-(p * np.log(p)).sum())


def _tokenizer_hash(path: str) -> str:
    if not path:
        return ""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"config.data.tokenizer: {path} cannot be read ({error.strerror})"
        ) from error


def _settings(config: Config) -> dict[str, Any]:
    data = config.data
    settings = {
        "format": FORMAT,
        "vocab_size": config.model.vocab_size,
        "block_length": config.model.max_length,
        "max_tokens_per_char": data.max_tokens_per_char,
        "held_out_share": data.held_out_share,
        "tokenizer_chars": data.tokenizer_chars,
        "text_field": data.text_field,
        "txt_documents": data.txt_documents,
        "normalizer": data.normalizer,
        "tokenizer": _tokenizer_hash(data.tokenizer),
    }
    if data.tokenizer_kind != "wordpiece":  # not there when the first corpora were made
        settings["tokenizer_kind"] = data.tokenizer_kind
    return settings

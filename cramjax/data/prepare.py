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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from cramjax import files
from cramjax.data import cuts, dedup, encoding, processes, report, sources, tokenizer
from cramjax.data.corpus import MANIFEST, TOKENIZER, Corpus
from cramjax.data.encoding import Settings, Unit
from cramjax.data.fingerprints import Fingerprints
from cramjax.data.packing import token_dtype
from cramjax.data.readers import Problems, Reading
from cramjax.data.sources import Portion
from cramjax.errors import SourceLost, UserError
from cramjax.schema import Config
from cramjax.version import code_version

FORMAT = 5  # of the corpus folder; another number is another corpus
SHARD_CHARS = 1 << 25  # text of a shard: about 16 MiB of blocks
CHECK_CHARS = 1 << 20  # text that the normaliser is tried on
MAX_REMOVED = 0.1  # share of the characters it may remove
TEMPORARY = ("facts-*.json", "counts-*.npy", "cuts-*.npy", dedup.FOUND, "*.partial")
UNIT_BYTES = 1 << 24  # smaller files are encoded together
MAX_SHARE_ERROR = 0.05  # of a source's share of the text, before it is worth a word


def corpus_path(config: Config) -> Path:
    """Returns the folder of the packed corpus that a config asks for.

    Its name ends in a hash of all that changes the blocks: the files' contents, in
    their order, and the settings. Order and seed are not among them, nor where the
    files are.
    """
    portions, found = portions_of(config)
    contents = [
        [Path(f["path"]).suffixes, f["sha256"], p.max_chars, p.max_documents]
        for p, f in zip(portions, found, strict=True)
    ]
    key = [_settings(config), contents]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    first = config.data.sources[0]
    name = first if first.startswith("hf:") else Path(found[0]["path"]).name
    stem = re.sub(r"\W+", "-", name.split(".")[0])
    return Path(config.data.dir).expanduser() / f"{stem}-{digest}"


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
    except SourceLost:
        raise
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _build(config: Config, folder: Path, say: Callable[[str], None]) -> None:
    portions, found = portions_of(config)
    units = units_of(portions)
    rules = dedup.Rules.of(config.data)
    duplicates = dedup.find(units, Reading.of(config.data), rules, folder, say)
    words_path = folder / TOKENIZER
    if not words_path.exists():
        start = time.monotonic()
        if config.data.tokenizer:
            words_json = tokenizer.adopt(
                Path(config.data.tokenizer).expanduser(),
                config.model.vocab_size,
                config.data.normalizer,
            )
        elif len(units) == 1:
            words_json = _train_tokenizer(config, units, folder)
        else:  # in a process of its own, whose memory is free again afterwards
            with processes.pool(1, processes.cores()) as pool:
                task = pool.submit(_train_tokenizer, config, units, folder)
                words_json = task.result()
        files.write_text(words_path, words_json)
        say(
            f"tokenizer: {config.model.vocab_size} entries, "
            f"{time.monotonic() - start:.0f}s"
        )
    start = time.monotonic()
    by_unit = encode_all(config, units, folder, say)
    if portions_of(config)[1] != found:
        raise UserError(
            "config.data.sources: a file has changed while it was read; run again when "
            "all are complete"
        )
    manifest = _manifest(config, units, by_unit, found)
    if duplicates:
        manifest["duplicates"] = duplicates
    counts_V = sum(
        encoding.token_counts(number, len(shards), folder)
        for number, shards in enumerate(by_unit)
    )
    manifest["unigram_entropy"] = unigram_entropy(counts_V)
    files.write_json(folder / MANIFEST, manifest)
    lengths = _total(shard["lengths"] for unit in by_unit for shard in unit)
    filtered = [t for unit in by_unit for s in unit for t in s["filtered_examples"]]
    report.write(Corpus(folder), counts_V, lengths, filtered)
    for pattern in TEMPORARY:
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
    for source, share in zip(manifest["text"], config.data.shares, strict=False):
        asked = share / sum(config.data.shares)
        if abs(source["share"] - asked) > MAX_SHARE_ERROR * asked:
            say(
                f"corpus: {source['source']} gave {source['share']:.1%} of the text, "
                f"not {asked:.1%} (config.data.shares): it has too little for "
                f"config.data.max_chars={config.data.max_chars}"
            )


def _train_tokenizer(config: Config, units: Sequence[Unit], folder: Path) -> str:
    """Returns, as JSON, a tokenizer trained on the beginning of every part.

    Each gives `data.tokenizer_chars` by its weight; held-out documents give nothing,
    nor does what the cuts in the folder take out.
    """
    reading = Reading.of(config.data)
    cut = dedup.Rules.of(config.data).on
    problems: Problems = collections.Counter()

    def sample() -> Iterator[str]:
        for unit in units:
            cuts_Rx4 = cuts.load(folder, unit.number) if cut else None
            for number, portion in enumerate(unit.portions):
                left = config.data.tokenizer_chars * portion.weight
                documents = sources.documents(portion, reading, problems)
                for text in cuts.without(documents, cuts_Rx4, number):
                    if left <= 0:
                        break
                    left -= len(text)
                    if not encoding.is_held_out(text, config.data.held_out_share):
                        yield text

    if next(sample(), None) is None:
        found = "; ".join(problems)
        raise UserError(
            f"config.data.sources: no text in {config.data.sources} ({found}); see "
            "data.txt_documents, data.text_field and data.keep in configs/default.py "
            "for what is a document"
        )
    _check_normalizer(config, sample())
    steps = config.data.normalizer
    return tokenizer.train(sample, config.model.vocab_size, steps).to_str()


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


def units_of(portions: Sequence[Portion]) -> list[Unit]:
    """Returns the parts in order, small ones of a source together."""
    groups: list[list[Portion]] = []
    room = 0
    for portion in portions:
        size = portion.part.size or UNIT_BYTES
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
        normalizer=config.data.normalizer,
        block_length=config.model.max_length,
        vocab_size=config.model.vocab_size,
        max_tokens_per_char=config.data.max_tokens_per_char,
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


def _manifest(
    config: Config,
    units: Sequence[Unit],
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
        "text": _text_by_source(config, units, by_unit),
        "licence": config.data.licence,
        "code": code_version(),
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


def _text_by_source(
    config: Config, units: Sequence[Unit], by_unit: list[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Returns {"source", "chars", "share"} of every source."""
    chars = [0] * len(config.data.sources)
    for unit, shards in zip(units, by_unit, strict=True):
        chars[unit.portions[0].source] += sum(shard["chars"] for shard in shards)
    return [
        {"source": source, "chars": n, "share": n / max(sum(chars), 1)}
        for source, n in zip(config.data.sources, chars, strict=True)
    ]


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
    return {
        "format": FORMAT,
        "vocab_size": config.model.vocab_size,
        "block_length": config.model.max_length,
        "max_tokens_per_char": data.max_tokens_per_char,
        "held_out_share": data.held_out_share,
        "tokenizer_chars": data.tokenizer_chars,
        "split": data.split,
        "keep": data.keep,
        "join_chars": data.join_chars,
        "text_field": data.text_field,
        "txt_documents": data.txt_documents,
        "normalizer": data.normalizer,
        "tokenizer": _tokenizer_hash(data.tokenizer),
        **dedup.Rules.of(data).settings(),
    }

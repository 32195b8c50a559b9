"""Raw text to a packed corpus: read, train tokenizer, encode, filter, pack."""

import hashlib
import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax.data import sources, tokenizer
from cramjax.data.corpus import MANIFEST, TOKENIZER, Corpus
from cramjax.data.fingerprints import fingerprints
from cramjax.data.packing import BlockWriter
from cramjax.errors import UserError
from cramjax.schema import Config

FORMAT = 3  # of the corpus folder; another number is another corpus
CHUNK_DOCUMENTS = 1000  # encoded at once: memory stays flat


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

    The folder appears whole or not at all. Its manifest holds `documents` (train,
    held_out, filtered), `tokens` (train, held_out), `bytes`, `unigram_entropy` (nats
    per token of the training blocks), `sources` and `settings`.

    Raises:
      UserError: a source cannot be read, `data.dir` cannot be written, the corpus is
        empty or too small for one training and one held-out block, or the vocabulary
        does not fit the text.
    """
    path = corpus_path(config)
    if (path / MANIFEST).exists():
        say(f"corpus: {path} (found)")
        return Corpus(path)
    if path.exists():
        raise UserError(f"{path} has no {MANIFEST}: delete it and run again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise UserError(
            f"config.data.dir is {config.data.dir!r}: cannot be written ({error})"
        ) from error
    try:
        manifest = _build(config, building, say)
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1))
        building.chmod(0o755)
        # Another process may have been faster: then its folder is the same as ours.
        if not (path / MANIFEST).exists():
            building.rename(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Corpus(path)


def _build(config: Config, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    paths = sources.resolve(config.data.sources)
    share = config.data.held_out_share
    start = time.monotonic()
    first = next(_documents(paths), None)
    if first is None:
        raise UserError(
            f"config.data.sources: no text in {', '.join(map(str, paths))}; a document "
            "is a line of .jsonl, or lines between blank ones in .txt"
        )
    words = tokenizer.train(
        lambda: (text for text in _documents(paths) if not is_held_out(text, share)),
        config.model.vocab_size,
    )
    words.save(str(folder / TOKENIZER))
    say(f"tokenizer: {words.get_vocab_size()} entries, {time.monotonic() - start:.0f}s")

    length = config.model.max_length
    writers = {
        prefix: BlockWriter(folder, prefix, length, config.model.vocab_size)
        for prefix in ("blocks", "held_out")
    }
    documents = dict.fromkeys(("train", "held_out", "filtered"), 0)
    total_bytes = 0
    encode_start = time.monotonic()
    words = tokenizer.load(folder / TOKENIZER, "run again")
    limit = config.data.max_tokens_per_char
    for text, ids in _encoded(words, _documents(paths)):
        total_bytes += len(text.encode())
        if limit and len(ids) > limit * len(text):
            documents["filtered"] += 1
        elif is_held_out(text, share):
            documents["held_out"] += 1
            writers["held_out"].add(ids)
        else:
            documents["train"] += 1
            writers["blocks"].add(ids)
    shards = {prefix: writer.close() for prefix, writer in writers.items()}
    for prefix, what in (("blocks", "training"), ("held_out", "held-out")):
        if not shards[prefix]:
            raise UserError(
                f"config.data.sources: {sum(documents.values())} documents (of them "
                f"{documents['filtered']} dropped by config.data.max_tokens_per_char="
                f"{limit:g}, {documents['held_out']} held out by config.data."
                f"held_out_share={share:g}) leave no {what} block of {length} tokens: "
                "add text or change these keys (blank lines separate documents in .txt)"
            )
    seconds = time.monotonic() - encode_start
    say(
        f"corpus: {documents['train']:,} documents in {sum(shards['blocks']):,} blocks "
        f"of {length} tokens, {documents['held_out']:,} held out in "
        f"{sum(shards['held_out']):,}, {documents['filtered']:,} dropped, "
        f"{seconds:.0f}s"
    )
    return {
        "format": FORMAT,
        "settings": _settings(config),
        "sources": fingerprints(paths, folder.parent),
        "block_length": length,
        "vocab_size": config.model.vocab_size,
        "shards": shards,
        "documents": documents,
        "bytes": total_bytes,
        "tokens": {
            "train": sum(shards["blocks"]) * length,
            "held_out": sum(shards["held_out"]) * length,
        },
        "unigram_entropy": unigram_entropy(writers["blocks"].token_counts_V),
    }


def is_held_out(text: str, share: float) -> bool:
    """Returns whether a document is held out: told by its hash, so copies agree."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def unigram_entropy(counts_V: np.ndarray) -> float:
    """Returns the entropy of the tokens' frequencies, in nats."""
    p = counts_V[counts_V > 0] / counts_V.sum()
    return float(-(p * np.log(p)).sum())


def _documents(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        yield from sources.read_documents(path)


def _encoded(
    words: Tokenizer, documents: Iterator[str]
) -> Iterator[tuple[str, Sequence[int]]]:
    """Yields each document with its ids, the final <sep> included."""
    while chunk := list(itertools.islice(documents, CHUNK_DOCUMENTS)):
        encodings = words.encode_batch_fast(chunk, add_special_tokens=False)
        for text, encoding in zip(chunk, encodings, strict=True):
            yield text, [*encoding.ids, tokenizer.SEP]


def _settings(config: Config) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "vocab_size": config.model.vocab_size,
        "block_length": config.model.max_length,
        "max_tokens_per_char": config.data.max_tokens_per_char,
        "held_out_share": config.data.held_out_share,
    }

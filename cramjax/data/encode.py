"""From documents to shards of blocks: a function without state, for many processes."""

import collections
import hashlib
import itertools
import json
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.config import Config, DataConfig
from cramjax.data import tokenizer
from cramjax.data.corpus import EXAMPLE_CHARS, EXAMPLES, TOKENIZER, crc32
from cramjax.data.readers import File, Records
from cramjax.tokens import CLS, SEP, token_dtype

CHUNK_CHARS = 1 << 20  # text that is encoded at once
PIECE_CHARS = 1 << 16  # longer lines are encoded in pieces


def encode_group(
    number: int, group: Sequence[File], config: Config, folder: Path, shard_chars: int
) -> list[dict[str, Any]]:
    """Writes the shards of a group of files that are not finished yet.

    A shard is `shard_chars` of text, in blocks-<group>-<shard>.bin,
    held_out-<group>-<shard>.bin and counts-<group>-<shard>.npy (tokens of the training
    blocks); facts-<group>-<shard>.json is written last. The same text gives the same
    bytes, whichever process writes them and however often it was interrupted.

    Args:
      number: of the group.
      group: its files.
      config: of the corpus.
      folder: of the shards, with the tokenizer.
      shard_chars: at least 1.

    Returns:
      The facts of all shards, in order: {"documents" ({"train", "held_out",
      "filtered"}), "read" (documents in all), "filtered" ({key: how many it dropped}),
      "examples" ({key: beginnings of the first of them}), "chars", "bytes",
      "kept_bytes", "lengths" ({n: kept documents of 2^(n-1) to 2^n - 1 tokens}),
      "problems", "blocks" and "held_out" (see `ShardWriter.write`), "last" (of its
      group)}.

    Raises:
      UserError: see `File.documents`.
      OSError: the folder cannot be written.
    """
    done = _finished(number, folder)
    if done and done[-1]["last"]:
        return done
    data = config.data
    encoder = tokenizer.Encoder(
        tokenizer.load(folder / TOKENIZER, "run again"),
        tokenizer.all_steps(data.tokenizer_kind, data.normalizer),
    )
    records = Records(data)
    documents = itertools.chain.from_iterable(file.documents(records) for file in group)
    for _ in range(sum(facts["read"] for facts in done)):
        next(documents, None)
    while not (done and done[-1]["last"]):
        stem = _stem(number, len(done))
        before = records.problems.copy()
        facts, counts_V = _encode_shard(
            encoder, documents, config, shard_chars, folder, stem
        )
        facts["problems"] = dict(records.problems - before)
        with files.replacing(folder / f"counts-{stem}.npy") as file:
            np.save(file, counts_V)
        files.write_json(folder / f"facts-{stem}.json", facts)
        done.append(facts)
    return done


def token_counts(shards_of_groups: Sequence[int], folder: Path) -> np.ndarray:
    """Returns how often each token is in the training blocks.

    Args:
      shards_of_groups: the number of shards of every group.
      folder: see `encode_group`.
    """
    stems = [
        _stem(n, s) for n, count in enumerate(shards_of_groups) for s in range(count)
    ]
    return sum(np.load(folder / f"counts-{stem}.npy") for stem in stems)


def is_held_out(text: str, fraction: float) -> bool:
    """Returns whether a document is held out, by its hash: equal documents agree."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def dropped_by(text: str, tokens: int, data: DataConfig) -> str | None:
    """Returns the first key whose limit a document breaks, None if it is kept.

    Args:
      text: the document.
      tokens: how many it takes in the corpus, the special ones included.
      data: the config.
    """
    # The paper's filter (arXiv 2212.14034, section 4.4): what the tokenizer compresses
    # badly is not text.
    if data.max_tokens_per_char and tokens > data.max_tokens_per_char * len(text):
        return "max_tokens_per_char"
    if len(text) < data.min_document_chars:
        return "min_document_chars"
    if data.max_document_chars and len(text) > data.max_document_chars:
        return "max_document_chars"
    return None


def _stem(group: int, shard: int) -> str:
    return f"{group:05d}-{shard:05d}"


def _finished(group: int, folder: Path) -> list[dict[str, Any]]:
    """Returns the facts of the group's first shards that are whole."""
    done = []
    for number in itertools.count():
        stem = _stem(group, number)
        try:
            facts = json.loads((folder / f"facts-{stem}.json").read_text())
            np.load(folder / f"counts-{stem}.npy")
            for prefix in ("blocks", "held_out"):
                shard = facts[prefix]
                if crc32(folder / shard["file"]) != shard["crc32"]:
                    return done
        except (OSError, ValueError, LookupError, TypeError):
            return done
        done.append(facts)
        if facts["last"]:
            return done
    raise AssertionError("never reached")


def _encode_shard(
    encoder: tokenizer.Encoder,
    documents: Iterator[str],
    config: Config,
    shard_chars: int,
    folder: Path,
    stem: str,
) -> tuple[dict[str, Any], np.ndarray]:
    data = config.data
    writers = {
        prefix: ShardWriter(config.model.max_length, config.model.vocab_size)
        for prefix in ("blocks", "held_out")
    }
    counts = dict.fromkeys(("train", "held_out", "filtered"), 0)
    examples: dict[str, list[str]] = {}
    filtered: collections.Counter[str] = collections.Counter()
    lengths: collections.Counter[str] = collections.Counter()
    before = (CLS,) if data.cls else ()
    after = (SEP,) if data.sep else ()
    chars = read_bytes = kept_bytes = 0
    chunk: list[str] = ["first"]
    while chunk and chars < shard_chars:
        chunk = _take(documents, min(CHUNK_CHARS, shard_chars - chars))
        chars += sum(map(len, chunk))
        for text, parts in _encoded(encoder, chunk):
            text_bytes = len(text.encode())
            read_bytes += text_bytes
            tokens = len(before) + sum(map(len, parts)) + len(after)
            if key := dropped_by(text, tokens, data):
                counts["filtered"] += 1
                filtered[key] += 1
                if filtered[key] <= EXAMPLES:
                    examples.setdefault(key, []).append(text[:EXAMPLE_CHARS])
                continue
            kept_bytes += text_bytes
            lengths[str(tokens.bit_length())] += 1
            held_out = is_held_out(text, data.held_out_share)
            counts["held_out" if held_out else "train"] += 1
            writer = writers["held_out" if held_out else "blocks"]
            for ids in (before, *parts, after):
                writer.add(ids)
    facts = {
        "documents": counts,
        "read": sum(counts.values()),
        "filtered": dict(filtered),
        "examples": examples,
        "chars": chars,
        "bytes": read_bytes,
        "kept_bytes": kept_bytes,
        "lengths": dict(lengths),
        **{
            prefix: writer.write(folder / f"{prefix}-{stem}.bin")
            for prefix, writer in writers.items()
        },
        "last": not chunk,
    }
    return facts, writers["blocks"].token_counts_V


def _take(documents: Iterator[str], chars: int) -> list[str]:
    """Returns the next documents, until they have so many characters."""
    taken: list[str] = []
    while chars > 0 and (text := next(documents, None)) is not None:
        taken.append(text)
        chars -= len(text)
    return taken


def _encoded(
    encoder: tokenizer.Encoder, texts: Sequence[str]
) -> Iterator[tuple[str, list[list[int]]]]:
    """Yields each text with its ids, in one or more lists."""
    pieces = [split(text, PIECE_CHARS) for text in texts]
    ids = iter(encoder.ids(list(itertools.chain.from_iterable(pieces))))
    for text, of_text in zip(texts, pieces, strict=True):
        yield text, [next(ids) for _ in of_text]


def split(text: str, size: int) -> list[str]:
    """Cuts a text into its lines, and these into pieces of about `size` characters.

    Cuts are at newlines and spaces only. The tokenizer ends words there, so the pieces'
    tokens are the text's, and a long document needs little memory and uses all cores.
    """
    pieces = []
    for line in text.split("\n"):
        start = 0
        while len(line) - start > size:
            space = line.find(" ", start + size)
            if space < 0:
                break
            pieces.append(line[start:space])
            start = space + 1
        pieces.append(line[start:])
    return pieces


class ShardWriter:
    """Concatenates documents and cuts them into blocks; the last partial one is lost.

    Attributes:
      token_counts_V: how often each token was written, after `write`.
    """

    def __init__(self, length: int, vocab_size: int):
        """Keeps the shard in memory until it is written."""
        self._length = length
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._buffer = array("H" if self._dtype.itemsize == 2 else "I")
        self.token_counts_V = np.zeros(vocab_size, np.int64)

    def add(self, ids: Sequence[int]) -> None:
        """Appends a part of a document."""
        self._buffer.extend(ids)

    def write(self, path: Path) -> dict[str, Any]:
        """Writes the shard; returns {"file", "blocks", "crc32"}."""
        blocks = len(self._buffer) // self._length
        tokens = np.frombuffer(self._buffer, self._dtype.newbyteorder("="))
        tokens = tokens[: blocks * self._length]
        for start in range(0, len(tokens), 1 << 20):  # bincount makes an int64 copy
            some = tokens[start : start + (1 << 20)]
            self.token_counts_V += np.bincount(some, minlength=len(self.token_counts_V))
        data = tokens.astype(self._dtype, copy=False).data
        files.write_bytes(path, data)
        return {"file": path.name, "blocks": blocks, "crc32": zlib.crc32(data)}

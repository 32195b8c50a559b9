"""From files to shards of blocks: a function without state, for one process or many."""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.data import cuts, sources, tokenizer
from cramjax.data.filters import Filters
from cramjax.data.packing import ShardWriter, crc32
from cramjax.data.readers import Problems, Reading
from cramjax.data.sources import Portion

CHUNK_CHARS = 1 << 20  # text that is encoded at once
PIECE_CHARS = 1 << 16  # longer lines are encoded in pieces
EXAMPLES, EXAMPLE_CHARS = 3, 200  # of what is dropped, for people to read


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a shard depends on besides its text and the tokenizer."""

    reading: Reading
    normalizer: tuple[str, ...]
    block_length: int
    vocab_size: int
    filters: Filters
    cls: bool
    sep: bool
    held_out_share: float
    shard_chars: int
    cut: bool  # whether the unit's cuts are in the folder


@dataclasses.dataclass(frozen=True)
class Unit:
    """Consecutive parts of one source that one worker turns into shards."""

    number: int
    portions: tuple[Portion, ...]


def encode_unit(
    unit: Unit, settings: Settings, folder: Path, tokenizer_path: Path
) -> list[dict[str, Any]]:
    """Writes the shards of a unit that are not finished yet.

    A shard is `settings.shard_chars` of text, in blocks-<unit>-<shard>.bin,
    held_out-<unit>-<shard>.bin and counts-<unit>-<shard>.npy (tokens of the training
    blocks); facts-<unit>-<shard>.json is written last. The same text gives the same
    bytes, whoever writes them and however often it was interrupted.

    Returns:
      The facts of all shards, in order: {"documents" ({"train", "held_out",
      "filtered"}), "read" (documents in all), "filtered" ({key: how many were dropped
      by it}), "examples" ({key: beginnings of the first}), "chars", "bytes",
      "kept_bytes", "lengths" ({n: documents of 2^(n-1) to 2^n - 1 tokens that are
      kept}), "problems", "blocks" and "held_out" (see `ShardWriter.write`), "last" (of
      its unit)}.

    Raises:
      UserError: see `sources.documents`.
      OSError: the folder cannot be written.
    """
    done = _finished(unit, folder)
    if done and done[-1]["last"]:
        return done
    words = tokenizer.load(tokenizer_path, "run again")
    encoder = tokenizer.Encoder(words, settings.normalizer)
    problems: Problems = collections.Counter()
    cuts_Rx4 = cuts.load(folder, unit.number) if settings.cut else None
    documents = read_all(unit.portions, settings.reading, problems, cuts_Rx4)
    for _ in range(sum(facts["read"] for facts in done)):
        next(documents, None)
    while not (done and done[-1]["last"]):
        stem = _stem(unit.number, len(done))
        before = problems.copy()
        facts, counts_V = _encode_shard(encoder, documents, settings, folder, stem)
        facts["problems"] = dict(problems - before)
        with files.replacing(folder / f"counts-{stem}.npy") as file:
            np.save(file, counts_V)
        files.write_json(folder / f"facts-{stem}.json", facts)
        done.append(facts)
    return done


def token_counts(unit: int, shards: int, folder: Path) -> np.ndarray:
    """Returns how often the unit's training blocks have each token."""
    stems = (_stem(unit, number) for number in range(shards))
    return sum(np.load(folder / f"counts-{stem}.npy") for stem in stems)


def is_held_out(text: str, share: float) -> bool:
    """Returns whether a document is held out: told by its hash, so copies agree."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def read_all(
    portions: Iterable[Portion],
    reading: Reading,
    problems: Problems,
    cuts_Rx4: np.ndarray | None = None,
) -> Iterator[str]:
    """Yields the documents of several parts; see `sources` and `cuts.without`."""
    for number, portion in enumerate(portions):
        documents = sources.documents(portion, reading, problems)
        yield from cuts.without(documents, cuts_Rx4, number)


def _stem(unit: int, number: int) -> str:
    return f"{unit:05d}-{number:05d}"


def _finished(unit: Unit, folder: Path) -> list[dict[str, Any]]:
    """Returns the facts of the unit's first shards that are there and whole."""
    done = []
    for number in itertools.count():
        stem = _stem(unit.number, number)
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
    settings: Settings,
    folder: Path,
    stem: str,
) -> tuple[dict[str, Any], np.ndarray]:
    writers = {
        prefix: ShardWriter(settings.block_length, settings.vocab_size)
        for prefix in ("blocks", "held_out")
    }
    counts = dict.fromkeys(("train", "held_out", "filtered"), 0)
    examples: dict[str, list[str]] = {}
    filtered: collections.Counter[str] = collections.Counter()
    before = (tokenizer.CLS,) if settings.cls else ()
    behind = (tokenizer.SEP,) if settings.sep else ()
    lengths: collections.Counter[str] = collections.Counter()
    size = read_bytes = kept_bytes = 0
    chunk: list[str] = ["first"]
    while chunk and size < settings.shard_chars:
        chunk = _take(documents, min(CHUNK_CHARS, settings.shard_chars - size))
        size += sum(map(len, chunk))
        for text, parts in _encoded(encoder, chunk):
            text_bytes = len(text.encode())
            read_bytes += text_bytes
            tokens = len(before) + sum(map(len, parts)) + len(behind)
            if key := settings.filters.dropped_by(text, tokens):
                counts["filtered"] += 1
                filtered[key] += 1
                if filtered[key] <= EXAMPLES:
                    examples.setdefault(key, []).append(text[:EXAMPLE_CHARS])
                continue
            kept_bytes += text_bytes
            lengths[str(tokens.bit_length())] += 1
            held_out = is_held_out(text, settings.held_out_share)
            counts["held_out" if held_out else "train"] += 1
            writer = writers["held_out" if held_out else "blocks"]
            for ids in (before, *parts, behind):
                writer.add(ids)
    facts = {
        "documents": counts,
        "read": sum(counts.values()),
        "filtered": dict(filtered),
        "examples": examples,
        "chars": size,
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

    Cuts are at newlines and spaces only. Words end there for the tokenizer, so the
    pieces' tokens are the text's; and a long document takes neither much memory nor one
    core alone.
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

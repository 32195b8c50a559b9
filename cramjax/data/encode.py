"""From documents to shards of blocks, in many processes that can be interrupted."""

import collections
import hashlib
import itertools
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.config import Config, DataConfig
from cramjax.data import tokenizer
from cramjax.data.corpus import EXAMPLE_CHARS, EXAMPLES, TOKENIZER, Blocks, crc32
from cramjax.data.readers import File, ReadContext
from cramjax.errors import UserError
from cramjax.tokens import CLS, SEP, token_dtype

CHUNK_CHARS = 1 << 20  # text that is encoded at once
PIECE_CHARS = 1 << 16  # longer lines are encoded in pieces
FACTS = "facts-*.json"  # one of each finished shard
PARTS = ("blocks", "held_out")  # of a shard; "blocks" is what is trained on


def encode_group(
    number: int, group: Sequence[File], config: Config, folder: Path, shard_chars: int
) -> None:
    """Writes the shards of some files of one source that are not finished yet.

    The folder has the tokenizer. A shard is `shard_chars` of text, in
    blocks-<number>-<shard>.bin and held_out-<number>-<shard>.bin; with them goes
    facts-<number>-<shard>.json, written last. The same text gives the same bytes,
    whichever process writes them and however often it was interrupted.

    At the end, `group_facts` has the facts of all shards, in order: {"source" (its
    index), "documents" ({"train", "held_out", "filtered"}), "filtered" ({key: how many
    it dropped}), "examples" ({key: beginnings of the first of them}), "chars", "bytes",
    "kept_bytes", "lengths" ({n: kept documents of 2^(n-1) to 2^n - 1 tokens}),
    "problems", "blocks" and "held_out" (see `write_blocks`), "last" (of its group)}.

    Raises:
      UserError: see `File.documents`.
      OSError: the folder cannot be written.
    """
    # Earlier versions did not record the source.
    source = {"source": group[0].source}
    done = [facts | source for facts in _finished(number, folder)]
    if not (done and done[-1]["last"]):
        encoder = tokenizer.BatchEncoder(
            tokenizer.load(folder / TOKENIZER, "run again"),
            tokenizer.all_steps(config.data.tokenizer_kind, config.data.normalizer),
        )
        context = ReadContext(config.data)
        documents = itertools.chain.from_iterable(f.documents(context) for f in group)
        for _ in range(sum(sum(facts["documents"].values()) for facts in done)):
            next(documents, None)
    while not (done and done[-1]["last"]):
        stem = f"{number:05d}-{len(done):05d}"
        before = context.problems.copy()
        facts = _encode_shard(encoder, documents, config, shard_chars, folder, stem)
        facts |= source | {"problems": dict(context.problems - before)}
        files.write_record(folder / f"facts-{stem}.json", facts)
        done.append(facts)
    length, vocab_size = config.model.max_length, config.model.vocab_size
    train = [facts["blocks"] for facts in done]
    blocks = Blocks(folder, train, length, token_dtype(vocab_size))
    path = group_facts(number, folder)
    files.save_array(path.with_suffix(".npy"), blocks.token_counts(vocab_size))
    files.write_record(path, {"shards": done})


def group_facts(number: int, folder: Path) -> Path:
    """Returns the path of the facts of a group, written last; beside it, as .npy, are
    counts_V: how often each token occurs in its training blocks.
    """
    return folder / f"group-{number:05d}.json"


def is_held_out(text: str, fraction: float) -> bool:
    """Returns whether a document is held out, by its hash: equal documents agree."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def dropped_by(text: str, tokens: int, data: DataConfig) -> str | None:
    """Returns the first key of `data` that drops a document, None if it is kept.

    `tokens` is how many it takes in the corpus, the special ones included.
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


def _finished(group: int, folder: Path) -> list[dict[str, Any]]:
    """Returns the facts of the group's first shards, as far as they are intact."""
    done: list[dict[str, Any]] = []
    while not (done and done[-1]["last"]):
        try:
            path = folder / f"facts-{group:05d}-{len(done):05d}.json"
            facts = files.read_json(path, "")
            shards = [facts[part] for part in PARTS]
            if any(crc32(folder / s["file"]) != s["crc32"] for s in shards):
                break
        except (OSError, UserError):
            break
        done.append(facts)
    return done


def _encode_shard(
    encoder: tokenizer.BatchEncoder,
    documents: Iterator[str],
    config: Config,
    shard_chars: int,
    folder: Path,
    stem: str,
) -> dict[str, Any]:
    data, dtype = config.data, token_dtype(config.model.vocab_size)
    tokens = {part: array("H" if dtype == "<u2" else "I") for part in PARTS}
    counts = dict.fromkeys(("train", "held_out", "filtered"), 0)
    examples: dict[str, list[str]] = {}
    filtered: collections.Counter[str] = collections.Counter()
    lengths: collections.Counter[str] = collections.Counter()
    before, after = [CLS] * data.cls, [SEP] * data.sep
    chars = read_bytes = kept_bytes = 0
    last = False
    while not last and chars < shard_chars:
        chunk = _take(documents, min(CHUNK_CHARS, shard_chars - chars))
        last = not chunk
        chars += sum(map(len, chunk))
        for text, ids_of_pieces in _encoded(encoder, chunk):
            text_bytes = len(text.encode())
            read_bytes += text_bytes
            length = len(before) + sum(map(len, ids_of_pieces)) + len(after)
            if key := dropped_by(text, length, data):
                counts["filtered"] += 1
                filtered[key] += 1
                if filtered[key] <= EXAMPLES:
                    examples.setdefault(key, []).append(text[:EXAMPLE_CHARS])
                continue
            kept_bytes += text_bytes
            lengths[str(length.bit_length())] += 1
            held_out = is_held_out(text, data.held_out_share)
            counts["held_out" if held_out else "train"] += 1
            for ids in (before, *ids_of_pieces, after):
                tokens["held_out" if held_out else "blocks"].extend(ids)
    return {
        "documents": counts,
        "filtered": dict(filtered),
        "examples": examples,
        "chars": chars,
        "bytes": read_bytes,
        "kept_bytes": kept_bytes,
        "lengths": dict(lengths),
        **{
            part: write_blocks(
                tokens[part], config.model.max_length, folder / f"{part}-{stem}.bin"
            )
            for part in PARTS
        },
        "last": last,
    }


def _take(documents: Iterator[str], chars: int) -> list[str]:
    """Returns the next documents, until they have that many characters."""
    taken: list[str] = []
    while chars > 0 and (text := next(documents, None)) is not None:
        taken.append(text)
        chars -= len(text)
    return taken


def _encoded(
    encoder: tokenizer.BatchEncoder, texts: Sequence[str]
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


def write_blocks(tokens: array, length: int, path: Path) -> dict[str, Any]:
    """Cuts concatenated documents into blocks and writes them; an incomplete last block
    is dropped.

    Returns:
      {"file" (its name), "blocks" (how many), "crc32"}.
    """
    blocks = len(tokens) // length
    data = np.asarray(tokens)[: blocks * length]
    data = data.astype(data.dtype.newbyteorder("<"), copy=False).data
    files.write_bytes(path, data)
    return {"file": path.name, "blocks": blocks, "crc32": zlib.crc32(data)}

"""What a packed corpus says of itself: counts, sources, settings."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax.data import dedup, vocabulary
from cramjax.data.corpus import checksum
from cramjax.data.encoding import Unit
from cramjax.data.filters import Filters
from cramjax.data.packing import crc32, token_dtype
from cramjax.errors import UserError
from cramjax.schema import Config
from cramjax.version import code_version

FORMAT = 5  # of the corpus folder; another number is another corpus
MAX_SHARE_ERROR = 0.05  # of a source's share of the text, before it is worth a word


def settings(config: Config) -> dict[str, Any]:
    """Returns what changes the blocks, besides the text."""
    data = config.data
    return {
        "format": FORMAT,
        "vocab_size": config.model.vocab_size,
        "block_length": config.model.max_length,
        **dataclasses.asdict(Filters.of(data)),
        "cls": data.cls,
        "sep": data.sep,
        "held_out_share": data.held_out_share,
        "tokenizer_chars": data.tokenizer_chars,
        "split": data.split,
        "keep": data.keep,
        "join_chars": data.join_chars,
        "text_field": data.text_field,
        "txt_documents": data.txt_documents,
        "normalizer": data.normalizer,
        "tokenizer_kind": data.tokenizer_kind,
        "tokenizer": vocabulary.content_hash(data.tokenizer),
        **dedup.Rules.of(data).settings(),
    }


def make(
    config: Config,
    units: Sequence[Unit],
    by_unit: Sequence[Sequence[Mapping[str, Any]]],
    found_sources: Sequence[Mapping[str, Any]],
    counts_V: np.ndarray,
    duplicates: Mapping[str, Any],
    tokenizer_path: Path,
) -> dict[str, Any]:
    """Returns the manifest, see `prepare.prepare`.

    Args:
      config: what was asked for.
      units: what was read.
      by_unit: the facts of each unit's shards, see `encoding.encode_unit`.
      found_sources: path, size and hash of every part.
      counts_V: how often each token is in the training blocks.
      duplicates: see `dedup.find`.
      tokenizer_path: of the tokenizer.

    Raises:
      UserError: there is too little text for a training and a held-out block.
    """
    shards = list(itertools.chain.from_iterable(by_unit))
    documents = total(shard["documents"] for shard in shards)
    parts = {part: [s[part] for s in shards] for part in ("blocks", "held_out")}
    length = config.model.max_length
    filtered = total(shard["filtered"] for shard in shards)
    dropped = ", ".join(
        f"{count} dropped by config.data.{key}={getattr(config.data, key):g}"
        for key, count in filtered.items()
    )
    for part, what in (("blocks", "training"), ("held_out", "held-out")):
        if not blocks(parts[part]):
            raise UserError(
                f"config.data.sources: {sum(documents.values())} documents (of them "
                f"{dropped or 'none dropped'}, {documents['held_out']} held out by "
                f"config.data.held_out_share={config.data.held_out_share:g}) leave no "
                f"{what} block of {length} tokens: add text or change these keys "
                "(config.data.txt_documents says what ends a document in .txt)"
            )
    content = {
        "format": FORMAT,
        "settings": settings(config),
        "sources": found_sources,
        "text": _text_by_source(config, units, by_unit),
        "licence": config.data.licence,
        "code": code_version(),
        "block_length": length,
        "vocab_size": config.model.vocab_size,
        "dtype": token_dtype(config.model.vocab_size),
        "shards": parts,
        "documents": documents,
        "filtered": filtered,
        "bytes": sum(shard["bytes"] for shard in shards),
        "kept_bytes": sum(shard["kept_bytes"] for shard in shards),
        "problems": total(shard["problems"] for shard in shards),
        "tokens": {
            "train": blocks(parts["blocks"]) * length,
            "held_out": blocks(parts["held_out"]) * length,
        },
        "unigram_entropy": unigram_entropy(counts_V),
        "tokenizer_crc32": crc32(tokenizer_path),
        **({"duplicates": duplicates} if duplicates else {}),
    }
    return content | {"checksum": checksum(content)}


def lines(config: Config, manifest: Mapping[str, Any]) -> list[str]:
    """Returns what is worth saying of a new corpus."""
    documents, shards = manifest["documents"], manifest["shards"]
    told = [
        f"{documents['train']:,} documents in {blocks(shards['blocks']):,} blocks of "
        f"{config.model.max_length} tokens, {documents['held_out']:,} held out in "
        f"{blocks(shards['held_out']):,}, {documents['filtered']:,} dropped"
    ]
    told += [f"{what} ({count:,})" for what, count in manifest["problems"].items()]
    for source, share in zip(manifest["text"], config.data.shares, strict=False):
        asked = share / sum(config.data.shares)
        if source["share"] < (1 - MAX_SHARE_ERROR) * asked:
            told.append(
                f"{source['source']} gave {source['share']:.1%} of the text, not "
                f"{asked:.1%} (config.data.shares): it has too little for "
                f"config.data.max_chars={config.data.max_chars}"
            )
    return told


def _text_by_source(
    config: Config,
    units: Sequence[Unit],
    by_unit: Sequence[Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """Returns {"source", "chars", "share"} of every source."""
    chars = [0] * len(config.data.sources)
    for unit, shards in zip(units, by_unit, strict=True):
        chars[unit.portions[0].source] += sum(shard["chars"] for shard in shards)
    return [
        {"source": source, "chars": n, "share": n / max(sum(chars), 1)}
        for source, n in zip(config.data.sources, chars, strict=True)
    ]


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Returns the sums of several counts."""
    sums: collections.Counter[str] = collections.Counter()
    for each in counts:
        sums.update(each)
    return dict(sums)


def blocks(shards: Iterable[Mapping[str, Any]]) -> int:
    """Returns how many blocks some shards have."""
    return sum(shard["blocks"] for shard in shards)


def unigram_entropy(counts_V: np.ndarray) -> float:
    """Returns the entropy of the tokens' frequencies, in nats."""
    p = counts_V[counts_V > 0] / counts_V.sum()
    return float(-(p * np.log(p)).sum())

"""The packed corpus on disk: manifest, tokenizer and memory-mapped blocks."""

import collections
import itertools
import json
import math
import resource
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax import files
from cramjax.config import Config
from cramjax.data import tokenizer
from cramjax.data.readers import File
from cramjax.errors import UserError
from cramjax.tokens import CLS, SEP, token_dtype
from cramjax.version import code_version

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
FORMAT = 5  # of the corpus folder; another number is another corpus
EXAMPLES, EXAMPLE_CHARS = 3, 200  # of what is dropped, for people to read
MAX_SHARE_ERROR = 0.05  # of a source's fraction of the text, before it is reported


class Blocks:
    """Rows of L tokens over memory-mapped shards."""

    def __init__(
        self, folder: Path, shards: list[dict[str, Any]], length: int, dtype: str
    ):
        """Maps the shards in a folder.

        Args:
          folder: of the files.
          shards: {"file", "blocks", "crc32"} of each.
          length: tokens in a block.
          dtype: of the tokens.

        Raises:
          UserError: a shard is missing or of another size than the manifest says.
        """
        self.length, self._dtype = length, np.dtype(dtype)
        self._folder, self._facts = folder, [s for s in shards if s["blocks"]]
        self._ends = np.cumsum([shard["blocks"] for shard in self._facts])
        self._shards = []
        _allow_open_files(2 * len(self._facts))
        for shard in self._facts:
            path, shape = folder / shard["file"], (shard["blocks"], length)
            size = math.prod(shape) * self._dtype.itemsize
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(
                    f"{path} is not the {size} bytes its manifest promises: delete "
                    f"{folder} and run again to rebuild it"
                )
            self._shards.append(np.memmap(path, self._dtype, "r", shape=shape))

    def verify(self) -> None:
        """Reads every shard once.

        Raises:
          UserError: one is not what was written.
        """
        for shard in self._facts:
            path = self._folder / shard["file"]
            if crc32(path) != shard.get("crc32"):
                raise UserError(
                    f"{path} is damaged, its checksum is not the manifest's: delete "
                    f"{self._folder} and run again to rebuild it"
                )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """Returns tokens_NxL, a copy."""
        if len(self._shards) == 1:
            return np.asarray(self._shards[0][rows_N])
        tokens_NxL = np.empty((len(rows_N), self.length), self._dtype)
        shard_N = np.searchsorted(self._ends, rows_N, side="right")
        for shard in np.unique(shard_N):
            here_N = shard_N == shard
            start = self._ends[shard - 1] if shard else 0
            tokens_NxL[here_N] = self._shards[shard][rows_N[here_N] - start]
        return tokens_NxL


def crc32(path: Path) -> int:
    """Returns the checksum of a file, read a piece at a time."""
    value = 0
    with path.open("rb") as file:
        while data := file.read(1 << 24):
            value = zlib.crc32(data, value)
    return value


def checksum(manifest: Mapping[str, Any]) -> int:
    """Returns what a manifest's "checksum" has to be."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _allow_open_files(count: int) -> None:
    """Raises the process's limit: a memory map keeps its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = soft + count
    if hard == resource.RLIM_INFINITY or needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    elif soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Corpus:
    """A packed corpus as `prepare` left it.

    Attributes:
      path: its folder.
      manifest: counts, settings and sources; see `prepare.prepare`.
      train: the training blocks, in stored order.
      held_out: the blocks of the held-out documents.
      tokenizer: the one they were made with.
    """

    def __init__(self, path: Path):
        """Opens a corpus.

        Raises:
          UserError: the manifest or tokenizer cannot be read, or the files do not fit.
        """
        self.path = path
        rebuild = f"delete {path} and run again to rebuild it"
        self.manifest: dict[str, Any] = files.read_json(path / MANIFEST, rebuild)
        if self.manifest.get("checksum") != checksum(self.manifest):
            raise UserError(f"{path / MANIFEST} is damaged (its checksum): {rebuild}")
        try:
            self.train, self.held_out = (
                Blocks(
                    path,
                    self.manifest["shards"][part],
                    self.manifest["block_length"],
                    self.manifest["dtype"],
                )
                for part in ("blocks", "held_out")
            )
        except (LookupError, TypeError) as error:
            raise UserError(
                f"{path / MANIFEST} is damaged ({error!r}): {rebuild}"
            ) from error
        self.tokenizer: Tokenizer = tokenizer.load(path / TOKENIZER, rebuild)

    def verify(self) -> None:
        """Compares every shard with its checksum.

        Raises:
          UserError: one is damaged.
        """
        self.train.verify()
        self.held_out.verify()
        path = self.path / TOKENIZER
        if crc32(path) != self.manifest["tokenizer_crc32"]:
            raise UserError(
                f"{path} is damaged, its checksum is not the manifest's: delete "
                f"{self.path} and run again to rebuild it"
            )


def settings(config: Config) -> dict[str, Any]:
    """Returns what changes the blocks, besides the text."""
    data = config.data
    return {
        "format": FORMAT,
        "vocab_size": config.model.vocab_size,
        "block_length": config.model.max_length,
        "max_tokens_per_char": data.max_tokens_per_char,
        "min_document_chars": data.min_document_chars,
        "max_document_chars": data.max_document_chars,
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
        "tokenizer": tokenizer.content_hash(data.tokenizer),
        # What is off is left out, so that older corpora keep their names.
        **({"drop_duplicates": True} if data.drop_duplicates else {}),
        **({"dedup_bytes": data.dedup_bytes} if data.dedup_bytes else {}),
    }


def make_manifest(
    config: Config,
    groups: Sequence[Sequence[File]],
    by_group: Sequence[Sequence[Mapping[str, Any]]],
    contents: Sequence[Mapping[str, Any]],
    counts_V: np.ndarray,
    duplicates: Mapping[str, Any],
    tokenizer_path: Path,
) -> dict[str, Any]:
    """Returns the manifest of a finished corpus, see `prepare.prepare`.

    Args:
      config: of the corpus.
      groups: the files that were read.
      by_group: the facts of each group's shards, see `encode.encode_group`.
      contents: path, size and hash of every file.
      counts_V: how often each token is in the training blocks.
      duplicates: see `dedup.deduplicated`; {} without.
      tokenizer_path: of the tokenizer.

    Raises:
      UserError: there is too little text for a training and a held-out block.
    """
    shards = list(itertools.chain.from_iterable(by_group))
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
        "sources": contents,
        "text": _text_by_source(config, groups, by_group),
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


def summary_lines(config: Config, manifest: Mapping[str, Any]) -> list[str]:
    """Returns what a user should know about a new corpus."""
    documents, shards = manifest["documents"], manifest["shards"]
    lines = [
        f"{documents['train']:,} documents in {blocks(shards['blocks']):,} blocks of "
        f"{config.model.max_length} tokens, {documents['held_out']:,} held out in "
        f"{blocks(shards['held_out']):,}, {documents['filtered']:,} dropped"
    ]
    lines += [f"{what} ({count:,})" for what, count in manifest["problems"].items()]
    for source, share in zip(manifest["text"], config.data.shares, strict=False):
        asked = share / sum(config.data.shares)
        if source["share"] < (1 - MAX_SHARE_ERROR) * asked:
            lines.append(
                f"{source['source']} gave {source['share']:.1%} of the text, not "
                f"{asked:.1%} (config.data.shares): it has too little for "
                f"config.data.max_chars={config.data.max_chars}"
            )
    return lines


def _text_by_source(
    config: Config,
    groups: Sequence[Sequence[File]],
    by_group: Sequence[Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """Returns {"source", "chars", "share"} of every source."""
    chars = [0] * len(config.data.sources)
    for group, shards in zip(groups, by_group, strict=True):
        chars[group[0].source] += sum(shard["chars"] for shard in shards)
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
    """Returns the entropy of the tokens' frequencies, in nats.

    <cls> and <sep> are left out, because the held-out loss asks for neither.
    """
    counts_V = np.delete(counts_V, (CLS, SEP))
    p = counts_V[counts_V > 0] / counts_V.sum()
    return float(-(p * np.log(p)).sum())

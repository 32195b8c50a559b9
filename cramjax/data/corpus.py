"""The packed corpus on disk: manifest, tokenizer and memory-mapped blocks."""

import collections
import contextlib
import functools
import itertools
import math
import resource
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax import files
from cramjax.config import Config
from cramjax.data import tokenizer
from cramjax.errors import UserError
from cramjax.tokens import CLS, SEP, token_dtype
from cramjax.version import code_version

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
CORPUS = "corpus.json"  # in a workdir: the manifest, and the name of the folder
FROM_THE_CORPUS = (
    f"copy it from the folder of the corpus, where {CORPUS} is called {MANIFEST}"
)
FORMAT = 5  # of the corpus folder; another number is another corpus
EXAMPLES, EXAMPLE_CHARS = 3, 200  # of dropped text, for the report
MAX_MIX_ERROR = 0.05  # relative, of a source's fraction of the text; more is reported
CHUNK_ROWS = 1 << 14  # blocks that are read at once
# Of training and held-out shards each: a map keeps its file open, and a process has at
# most 65,530 maps (Linux's vm.max_map_count).
MAX_MAPS = 1 << 14
# The keys of `config.data` that change the blocks, in the order in which corpora have
# always been hashed.
SETTINGS = (
    *("max_tokens_per_char", "min_document_chars", "max_document_chars", "cls", "sep"),
    *("held_out_share", "tokenizer_chars", "split", "keep", "join_chars", "text_field"),
    *("txt_documents", "normalizer", "tokenizer_kind"),
)


class Blocks:
    """Rows of L tokens over memory-mapped shards."""

    def __init__(
        self, folder: Path, shards: list[dict[str, Any]], length: int, dtype: str
    ):
        """Finds the shards of a manifest, {"file", "blocks", "crc32"} each.

        Raises:
          UserError: a shard is missing or does not have the size that it should have.
        """
        self.length, self._dtype = length, np.dtype(dtype)
        shards = [shard for shard in shards if shard["blocks"]]
        self._ends = np.cumsum([shard["blocks"] for shard in shards])
        self._shards = []
        for shard in shards:
            path = folder / Path(shard["file"]).name  # never elsewhere
            shape = shard["blocks"], length
            size = math.prod(shape) * self._dtype.itemsize
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(
                    f"{path} does not have the {size} bytes of its manifest: delete "
                    f"{folder} and run again to rebuild it"
                )
            self._shards.append((path, shape))
        # The maps that were used last; the others are closed.
        self._map = functools.lru_cache(_room(len(shards)))(self._new_map)

    def _new_map(self, shard: int) -> np.memmap:
        path, shape = self._shards[shard]
        return np.memmap(path, self._dtype, "r", shape=shape)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """Returns tokens_NxL, a copy."""
        tokens_NxL = np.empty((len(rows_N), self.length), self._dtype)
        shard_N = np.searchsorted(self._ends, rows_N, side="right")
        for shard in np.unique(shard_N):
            here_N = shard_N == shard
            start = self._ends[shard - 1] if shard else 0
            tokens_NxL[here_N] = self._map(shard)[rows_N[here_N] - start]
        return tokens_NxL

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields all blocks in stored order, as tokens_NxL of bounded size."""
        for start in range(0, len(self), CHUNK_ROWS):
            yield self.take(np.arange(start, min(start + CHUNK_ROWS, len(self))))

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """Returns counts_V: how often each token occurs."""
        counts_V = np.zeros(vocab_size, np.int64)
        for tokens_NxL in self.chunks():
            counts_V += np.bincount(tokens_NxL.ravel(), minlength=vocab_size)
        return counts_V


def _room(shards: int) -> int:
    """Returns how many shards can be mapped at once, and raises the limit for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = soft + min(shards, MAX_MAPS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(ValueError):  # on a Mac there is another limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(limit - soft, soft // 4)


class Corpus:
    """A packed corpus as `prepare` left it.

    Attributes:
      path: its folder.
      manifest: counts, settings and sources; see `prepare.prepare`.
      train: the training blocks, in stored order.
      held_out: the blocks of the held-out documents.
      tokenizer: the one that encoded them.
    """

    def __init__(self, path: Path):
        """Opens a corpus.

        Raises:
          UserError: the manifest or the tokenizer is damaged, or a shard is missing.
        """
        self.path = path
        hint = f"delete {path} and run again to rebuild it"
        self.manifest: dict[str, Any] = files.read_json(path / MANIFEST, hint)
        length, dtype = self.manifest["block_length"], self.manifest["dtype"]
        self.train, self.held_out = (
            Blocks(path, self.manifest["shards"][part], length, dtype)
            for part in ("blocks", "held_out")
        )
        known = self.manifest["tokenizer_crc32"]
        self.tokenizer: Tokenizer = tokenizer.load(path / TOKENIZER, hint, known)

    def verify(self) -> None:
        """Reads every shard; raises a `UserError` if a checksum differs."""
        for shard in itertools.chain.from_iterable(self.manifest["shards"].values()):
            if crc32(path := self.path / shard["file"]) != shard["crc32"]:
                raise UserError(
                    f"{path} is damaged (its checksum is not the "
                    f"manifest's): delete {self.path} and run again to rebuild it"
                )


def of_run(workdir: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Returns a run's tokenizer, and the manifest of its corpus.

    Raises:
      UserError: one of them is missing or damaged.
    """
    manifest = files.read_json(workdir / CORPUS, FROM_THE_CORPUS)
    known = manifest.get("tokenizer_crc32")  # earlier versions did not write it
    return tokenizer.load(workdir / TOKENIZER, FROM_THE_CORPUS, known), manifest


def crc32(path: Path) -> int:
    """Returns the checksum of a file."""
    return zlib.crc32(path.read_bytes())


def settings(config: Config) -> dict[str, Any]:
    """Returns everything that changes the blocks, besides the text."""
    data = config.data
    # Deduplication that is off is left out, so that older corpora keep their names.
    optional = ("drop_duplicates", "dedup_bytes", "near_duplicates")
    return {
        "format": FORMAT,
        "vocab_size": config.model.vocab_size,
        "block_length": config.model.max_length,
        **{key: getattr(data, key) for key in SETTINGS},
        "tokenizer": tokenizer.content_hash(data.tokenizer),
        **{key: getattr(data, key) for key in optional if getattr(data, key)},
    }


def make_manifest(
    config: Config,
    shards: Sequence[Mapping[str, Any]],
    contents: Sequence[Mapping[str, Any]],
    counts_V: np.ndarray,
    duplicates: Mapping[str, Any],
    tokenizer_path: Path,
) -> dict[str, Any]:
    """Returns the manifest of a finished corpus, see `prepare.prepare`.

    Args:
      config: of the corpus.
      shards: the facts of all shards, see `encode.encode_group`.
      contents: see `sources.contents`.
      counts_V: how often each token occurs in the training blocks.
      duplicates: the facts of `dedup.deduplicated`; {} without.
      tokenizer_path: of the tokenizer.

    Raises:
      UserError: there is too little text for one training and one held-out block.
    """
    length, vocab_size = config.model.max_length, config.model.vocab_size
    documents = total(shard["documents"] for shard in shards)
    filtered = total(shard["filtered"] for shard in shards)
    parts = {part: [s[part] for s in shards] for part in ("blocks", "held_out")}
    train, held_out = (sum(s["blocks"] for s in part) for part in parts.values())
    for blocks, name in ((train, "training"), (held_out, "held-out")):
        if not blocks:
            raise UserError(
                f"config.data.sources: {sum(documents.values())} documents, of which "
                f"{documents['filtered']} were dropped {filtered or ''} and "
                f"{documents['held_out']} held out, leave no {name} block of {length} "
                "tokens: add text, or change config.data.txt_documents, "
                f"held_out_share={config.data.held_out_share:g} or a filter"
            )
    chars = [0] * len(config.data.sources)
    for shard in shards:
        chars[shard["source"]] += shard["chars"]
    return {
        "format": FORMAT,
        "settings": settings(config),
        "sources": contents,
        "text": [
            {"source": source, "chars": n, "share": n / max(sum(chars), 1)}
            for source, n in zip(config.data.sources, chars, strict=True)
        ],
        "licence": config.data.licence,
        "code": code_version(),
        "block_length": length,
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size),
        "shards": parts,
        "documents": documents,
        "filtered": filtered,
        "bytes": sum(shard["bytes"] for shard in shards),
        "kept_bytes": sum(shard["kept_bytes"] for shard in shards),
        "problems": total(shard["problems"] for shard in shards),
        "tokens": {"train": train * length, "held_out": held_out * length},
        "unigram_entropy": unigram_entropy(counts_V),
        "tokenizer_crc32": crc32(tokenizer_path),
        **({"duplicates": duplicates} if duplicates else {}),
    }


def summary_lines(config: Config, corpus: Corpus) -> list[str]:
    """Returns what a user should know about a new corpus."""
    manifest, documents = corpus.manifest, corpus.manifest["documents"]
    lines = [
        f"{documents['train']:,} documents in {len(corpus.train):,} blocks of "
        f"{corpus.train.length} tokens, {documents['held_out']:,} held out in "
        f"{len(corpus.held_out):,}, {documents['filtered']:,} dropped"
    ]
    lines += [f"{what} ({count:,})" for what, count in manifest["problems"].items()]
    for source, weight in zip(manifest["text"], config.data.shares, strict=False):
        expected = weight / sum(config.data.shares)
        if source["share"] < (1 - MAX_MIX_ERROR) * expected:
            lines.append(
                f"{source['source']} gave {source['share']:.1%} of the text, not "
                f"{expected:.1%} (config.data.shares): it has too little for "
                f"config.data.max_chars={config.data.max_chars}"
            )
    return lines


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Returns the sums of several counts."""
    sums: collections.Counter[str] = collections.Counter()
    for each in counts:
        sums.update(each)
    return dict(sums)


def unigram_entropy(counts_V: np.ndarray) -> float:
    """Returns the entropy of the tokens' frequencies, in nats.

    <cls> and <sep> are left out, because the held-out loss does not predict them.
    """
    counts_V = np.delete(counts_V, (CLS, SEP))
    p = counts_V[counts_V > 0] / counts_V.sum()
    return float(-(p * np.log(p)).sum())

"""Where text comes from: files and datasets, in parts, one document at a time."""

import dataclasses
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cramjax.data import huggingface, readers, tfds
from cramjax.data.fingerprints import Fingerprints
from cramjax.data.readers import File, Problems, Reading
from cramjax.errors import UserError
from cramjax.schema import DataConfig, require

MIN_CHARS = 1 << 13  # of a part, where a limit leaves each of them less
EMBEDDED = {"embedded:books": "demo/books.txt.xz"}


class Part(Protocol):
    """What one worker reads from beginning to end: a file, or a shard of a dataset."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def size(self) -> int | None:
        """Bytes, packed; None if unknown."""

    def facts(self, known: Fingerprints) -> dict[str, Any]:
        """Returns what the manifest says of it: name, size, and its content's hash."""

    def texts(self, reading: Reading, problems: Problems) -> Iterator[str]:
        """Yields its documents as they are, see `readers.file_texts`."""


@dataclasses.dataclass(frozen=True)
class Portion:
    """A part, and how much of it is taken.

    Attributes:
      part: the file or shard.
      source: the place in `config.data.sources` of what named it.
      weight: the share of the corpus's text that it is expected to give.
      max_chars: of its text, None = all: no document begins after that.
      max_documents: of its documents, None = all.
    """

    part: Part
    source: int
    weight: float
    max_chars: int | None = None
    max_documents: int | None = None


def resolve(data: DataConfig, known: Fingerprints) -> list[Portion]:
    """Returns the parts that `config.data.sources` names, in order.

    `data.max_chars` and `data.max_documents` are spread over the parts: over the
    sources by `data.shares`, or by their bytes; within a source by bytes, or equally
    where these are not known. Of very many small parts only some are taken.

    Args:
      data: the section of the config.
      known: remembers what a hub has said of its datasets.

    Raises:
      UserError: there is no part, a name matches nothing, nobody reads a suffix, or a
        dataset cannot be reached.
    """
    require(
        len(data.sources) > 0,
        "data.sources",
        data.sources,
        "the text to train on, e.g. --config.data.sources=\"('texts/*.txt.gz',)\"",
    )
    parts: list[list[Part]] = []
    for source in data.sources:
        prefix, colon, rest = source.partition(":")
        if colon and prefix in DATASETS:
            parts.append(DATASETS[prefix](rest, data, known))
        else:
            parts.append(_files(source))
    weights = _weights(parts, data.shares)
    limits = (spread(data.max_chars, weights), spread(data.max_documents, weights, 1))
    named = ((source, part) for source, group in enumerate(parts) for part in group)
    return [
        Portion(part, source, weight, chars, documents)
        for (source, part), weight, chars, documents in zip(
            named, weights, *limits, strict=True
        )
    ]


def _files(source: str) -> list[Part]:
    if source.startswith("embedded:"):
        if source not in EMBEDDED:
            raise UserError(
                f"config.data.sources: {source!r} is not one of {list(EMBEDDED)}"
            )
        matches = [str(resources.files("cramjax") / EMBEDDED[source])]
    else:
        pattern = str(Path(source).expanduser())
        matches = sorted(glob.glob(pattern, recursive=True))
        if Path(pattern).is_file():  # though it may look like a pattern
            matches = [pattern]
        matches = [m for m in matches if Path(m).is_file()]
    if not matches and Path(source).expanduser().is_dir():
        raise UserError(
            f"config.data.sources: {source!r} is a folder; pass the files in it, "
            f"{str(Path(source) / '*.txt')!r} say"
        )
    if not matches:
        raise UserError(
            f"config.data.sources: {source!r} matches no file; pass paths or globs, "
            "e.g. --config.data.sources=\"('texts/*.txt.gz',)\", or one of "
            f"{', '.join(f'{prefix}:NAME' for prefix in DATASETS)}"
        )
    for match in matches:
        kind = readers.file_format(Path(match))
        packed = Path(match).suffix != kind
        if kind not in readers.FORMATS or (packed and kind == ".parquet"):
            raise UserError(
                f"config.data.sources: {match} is none of "
                f"{', '.join(readers.FORMATS)} (plain or "
                f"{', '.join(readers.COMPRESSIONS)}; .parquet plain); convert or "
                "rename it"
            )
    # Not resolved: the suffix of a link says what is in the file, its target's may not.
    return [File(Path(os.path.abspath(m))) for m in matches]


DATASETS = {"tfds": tfds.shards, "hf": huggingface.shards}


def _weights(parts: Sequence[Sequence[Part]], shares: Sequence[float]) -> list[float]:
    """Returns the expected share of the text of every part; they sum to 1."""
    sizes = [[part.size for part in group] for group in parts]
    if None in itertools.chain.from_iterable(sizes):
        sizes = [[1] * len(group) for group in parts]
    sizes = [group if any(group) else [1] * len(group) for group in sizes]
    whole = sum(map(sum, sizes))
    of_source = shares or [sum(group) / whole for group in sizes]
    return [
        share / sum(of_source) * size / sum(group)
        for share, group in zip(of_source, sizes, strict=True)
        for size in group
    ]


def spread(
    total: int, weights: Sequence[float], grain: int = MIN_CHARS
) -> list[int | None]:
    """Returns each part's share of `total`, all None if it is 0.

    The shares sum to `total`, about. Where they would be below `grain` (a file gives
    whole documents only), some parts get a grain or more and others nothing.
    """
    if not total:
        return [None] * len(weights)
    if not grain <= total < len(weights) * grain:
        grain = 1
    ends = np.cumsum(weights) / np.sum(weights) * total / grain
    steps = np.diff(np.round(ends, 6).round(), prepend=0)
    return [int(step) * grain for step in steps]


def documents(portion: Portion, reading: Reading, problems: Problems) -> Iterator[str]:
    """Yields a part's documents, stripped, without the empty ones, up to its limits.

    A document longer than `readers.MAX_DOCUMENT_CHARS` becomes several, halves of
    surrogate pairs "?"; ones shorter than `reading.join_chars` are joined with the next
    ones by a newline.

    Args:
      portion: the part.
      reading: the rules.
      problems: {what: how often}, counted up while reading.

    Raises:
      UserError: see `readers.file_texts`.
    """
    texts = _joined(_clean(portion.part, reading, problems), reading.join_chars)
    chars = number = 0
    for text in texts:
        if portion.max_chars is not None and chars >= portion.max_chars:
            return
        if portion.max_documents is not None and number >= portion.max_documents:
            return
        chars, number = chars + len(text), number + 1
        yield text


def _clean(part: Part, reading: Reading, problems: Problems) -> Iterator[str]:
    empty = True
    limit = readers.MAX_DOCUMENT_CHARS
    for text in part.texts(reading, problems):
        starts = range(0, len(text), limit)
        if len(starts) > 1:
            problems["documents cut for their length"] += len(starts) - 1
        for start in starts:
            piece = text[start : start + limit].strip()
            piece = piece.encode(errors="replace").decode()
            if "\ufffd" in piece:
                problems["documents with bytes that are not UTF-8"] += 1
            empty = empty and not piece
            if piece:
                yield piece
    if empty:
        problems["files without text"] += 1


def _joined(texts: Iterator[str], min_chars: int) -> Iterator[str]:
    waiting: list[str] = []
    chars = 0
    for text in texts:
        waiting.append(text)
        chars += len(text)
        if chars >= min_chars:
            yield "\n".join(waiting)
            waiting, chars = [], 0
    if waiting:
        yield "\n".join(waiting)

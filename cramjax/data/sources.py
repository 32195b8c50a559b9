"""Where text comes from: files wherever they are, one document at a time."""

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from cramjax.data import readers, remote, tfds
from cramjax.data.fingerprints import Fingerprints
from cramjax.data.readers import File, Problems, Reading
from cramjax.errors import UserError
from cramjax.schema import DataConfig, require

MIN_CHARS = 1 << 13  # of a part, where a limit leaves each of them less
EMBEDDED = {"embedded:books": "demo/books.txt.xz"}
# Characters in a byte of a packed file: of C4, The Pile and Wikipedia, roughly.
EXPANSION = {".gz": 2.5, ".zst": 3, ".xz": 4, ".bz2": 4, ".parquet": 1.7}


@dataclasses.dataclass(frozen=True)
class Portion:
    """A part, and how much of it is taken.

    Attributes:
      part: the file, which one worker reads from beginning to end.
      source: the place in `config.data.sources` of what named it.
      weight: the share of the corpus's text that it is expected to give.
      max_chars: of its text, None = all: no document begins after that.
      max_documents: of its documents, None = all.
    """

    part: File
    source: int
    weight: float
    max_chars: int | None = None
    max_documents: int | None = None

    @property
    def chars_there(self) -> float:
        """Characters of the whole part, roughly."""
        return self.part.size * EXPANSION.get(self.part.path.suffix, 1)

    def chars_taken(self, document_chars: float) -> float:
        """Returns how many characters are taken of it, roughly.

        Args:
          document_chars: characters of a document, on average.
        """
        limits = [self.chars_there]
        if self.max_chars is not None:
            limits.append(self.max_chars)
        if self.max_documents is not None:
            limits.append(self.max_documents * document_chars)
        return min(limits)


def resolve(data: DataConfig, known: Fingerprints) -> list[Portion]:
    """Returns the parts that `config.data.sources` names, in order.

    `data.max_chars` and `data.max_documents` are spread over the parts: over the
    sources by `data.shares`, or by their bytes; within a source by bytes. Every part
    gives its beginning, and the rest of it is not downloaded. Of very many small parts
    only some are taken.

    Args:
      data: the section of the config.
      known: remembers what servers have said of their files.

    Raises:
      UserError: there is no part, a name matches nothing, nobody reads a suffix, or a
        server cannot be reached.
    """
    require(
        len(data.sources) > 0,
        "data.sources",
        data.sources,
        "the text to train on, e.g. --config.data.sources=\"('texts/*.txt.gz',)\"",
    )
    parts: list[Sequence[File]] = []
    for named in data.sources:
        source = remote.current(named, data.split)
        if source.startswith("tfds:"):
            parts.append(tfds.shards(source.removeprefix("tfds:"), data))
        elif "://" in source:
            parts.append(_readable(remote.find(source, known)))
        else:
            parts.append(_readable(_files(source)))
    weights = _weights(parts, data.shares)
    limits = (spread(data.max_chars, weights), spread(data.max_documents, weights, 1))
    numbered = ((source, part) for source, group in enumerate(parts) for part in group)
    return [
        Portion(part, source, weight, chars, documents)
        for (source, part), weight, chars, documents in zip(
            numbered, weights, *limits, strict=True
        )
    ]


def _files(source: str) -> list[File]:
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
            f"e.g. {str(Path(source) / '*.txt')!r}"
        )
    if not matches:
        raise UserError(
            f"config.data.sources: {source!r} matches no file; pass paths, globs or "
            "URLs, e.g. --config.data.sources=\"('texts/*.txt.gz',)\", or tfds:NAME"
        )
    # Not resolved: the suffix of a link says what is in the file, its target's may not.
    return [File(Path(os.path.abspath(m))) for m in matches]


def _readable(found: Sequence[File]) -> Sequence[File]:
    """Refuses files of a format that nobody reads."""
    for file in found:
        kind = readers.file_format(file.path)
        packed = file.path.suffix != kind
        if kind not in readers.FORMATS or (packed and kind == ".parquet"):
            raise UserError(
                f"config.data.sources: {file.name} is none of "
                f"{', '.join(readers.FORMATS)} (plain or "
                f"{', '.join(readers.COMPRESSIONS)}; .parquet plain); convert or "
                "rename it"
            )
    return found


def _weights(parts: Sequence[Sequence[File]], shares: Sequence[float]) -> list[float]:
    """Returns the expected share of the text of every part; they sum to 1."""
    sizes = [[part.size for part in group] for group in parts]
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


def _clean(part: File, reading: Reading, problems: Problems) -> Iterator[str]:
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

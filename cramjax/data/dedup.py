"""Drops text that occurred before: equal documents, and repeated runs of bytes.

Exact substrings after Lee et al., "Deduplicating Training Data Makes Language Models
Better" (2022, arXiv 2107.06499, section 4.1); here, the first occurrence always stays.

All text is read once, and what to cut out of it is written down. The files that
`deduplicated` returns apply these cuts as their documents are read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.config import DataConfig
from cramjax.data import processes
from cramjax.data.corpus import EXAMPLE_CHARS, EXAMPLES
from cramjax.data.readers import File, ReadContext
from cramjax.data.sources import grouped
from cramjax.errors import UserError

logger = logging.getLogger(__name__)

FOUND, CUTS = "duplicates.json", "cuts.npy"  # FOUND is written last
TEMPORARY = ("documents-*.npy", "text-*.bin", "repeats-*.npy")
# A document: its file's number, the bytes of its UTF-8, and its hash.
DOCUMENT = np.dtype([("file", "<i4"), ("bytes", "<i4"), ("digest", "<u8", 2)])
PACKED = struct.Struct("<ii16s")  # the same, faster to write
SEPARATOR = 0xFF  # after every document; never in UTF-8
CONTINUATION = [bytes([byte]) for byte in range(0x80, 0xC0)]  # inside a character


def deduplicated(
    found: Sequence[File], data: DataConfig, folder: Path
) -> tuple[list[File], dict[str, Any]]:
    """Returns files that give the text without what occurred before in all of it.

    Documents are compared as they are read, stripped, before the normalizer: 16 bytes
    of BLAKE2b identify them. This takes 80 bytes of memory per document.

    Repeats are found wherever they are. More text than `data.dedup_chunk_bytes` is
    divided into parts of half of it (a document more at most), and every two parts are
    searched together: memory is that of one chunk (see `repeated`), in one
    process, and time grows with the square of the text. Meanwhile the text is on the
    disk, in the folder. The text on both sides of a cut is joined, and the result is
    not searched again.

    After an interruption, the same call continues, to the same cuts.

    Returns:
      The files, and {"documents" (equal to an earlier one), "spans" (cut out of
      others), "bytes" (of both), "of_bytes" (text in all), "chunks" (parts of it; 1:
      all at once), "examples" (beginnings of some spans)}.

    Raises:
      UserError: the package for suffix arrays is missing; see also `File.documents`.
    """
    start = time.monotonic()
    path = folder / CUTS
    if not ((folder / FOUND).exists() and path.exists()):
        cuts_Rx4, facts = _find_cuts(found, data, folder)
        with files.replacing(path) as file:
            np.save(file, cuts_Rx4)
        files.write_json(folder / FOUND, facts)
    for temporary in itertools.chain.from_iterable(map(folder.glob, TEMPORARY)):
        temporary.unlink()
    facts = files.read_json(folder / FOUND, "run again")
    logger.info(
        f"duplicates: {facts['documents']:,} documents and {facts['spans']:,} spans "
        f"dropped, {facts['bytes'] / 1e6:,.1f} of {facts['of_bytes'] / 1e6:,.1f} MB, "
        f"{time.monotonic() - start:.0f}s"
    )
    return [
        dataclasses.replace(file, transform=functools.partial(_without, path, number))
        for number, file in enumerate(found)
    ], facts


def _without(path: Path, file: int, documents: Iterator[str]) -> Iterator[str]:
    """Yields a file's documents without what is cut, stripped, if any text is left.

    Args:
      path: of cuts_Rx4: file, document in the file, start and stop, in bytes of the
        document's UTF-8. Rows are sorted, and no two touch. Characters at the ends of a
        cut stay if they are not in it as a whole.
      file: its number.
      documents: of the file.
    """
    cuts_Rx4 = np.load(path, mmap_mode="r")
    low, high = np.searchsorted(cuts_Rx4[:, 0], [file, file + 1])
    cuts = itertools.groupby(cuts_Rx4[low:high, 1:].tolist(), key=lambda cut: cut[0])
    number, spans = next(cuts, (None, ()))
    for at, text in enumerate(documents):
        if at == number:
            data, kept, end = text.encode(), [], 0
            for _, start, stop in spans:
                while data[start : start + 1] in CONTINUATION:
                    start += 1
                while data[stop : stop + 1] in CONTINUATION:
                    stop -= 1
                if start < stop:
                    kept.append(data[end:start])
                    end = stop
            kept.append(data[end:])
            # Errors: the file has changed meanwhile, which `prepare` will report.
            text = b"".join(kept).decode(errors="ignore").strip()
            number, spans = next(cuts, (None, ()))
        if text:
            yield text


def _find_cuts(
    found: Sequence[File], data: DataConfig, folder: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns cuts_Rx4, see `_without`, and the facts about them."""
    if data.dedup_bytes:
        try:
            import pydivsufsort  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"config.data.dedup_bytes is {data.dedup_bytes}: needs the package "
                'pydivsufsort; pip install -e ".[dedup]" (or pip install '
                "pydivsufsort), or pass 0"
            ) from error
    text = Spool(found, data, folder)
    table = text.table
    duplicate_D = np.zeros(len(table), bool)
    if data.drop_duplicates:
        order_D = np.lexsort(table["digest"].T)  # stable: the first one comes first
        sorted_Dx2 = table["digest"][order_D]
        equal_D = (sorted_Dx2[1:] == sorted_Dx2[:-1]).all(axis=1)
        duplicate_D[order_D[1:]] = equal_D
    chunks, spans_Rx2 = 0, np.zeros((0, 2), np.int64)
    if data.dedup_bytes:
        chunks, spans_Rx2 = _repeats(text, data, folder)
        spans_Rx2 = spans_Rx2[~duplicate_D[text.documents_at(spans_Rx2[:, 0])]]
    of_R, whole_R = text.documents_at(spans_Rx2[:, 0]), np.flatnonzero(duplicate_D)
    whole_Rx2 = np.stack([np.zeros_like(whole_R), table["bytes"][whole_R]], axis=1)
    in_document_Rx2 = spans_Rx2 - text.starts_D[of_R][:, None]
    documents_R = np.concatenate([of_R, whole_R])
    files_R = table["file"][documents_R]
    in_file_R = documents_R - np.searchsorted(table["file"], files_R)
    cuts_Rx4 = np.column_stack(
        [files_R, in_file_R, np.concatenate([in_document_Rx2, whole_Rx2])]
    )
    return cuts_Rx4[np.lexsort(cuts_Rx4.T[::-1])], {
        "documents": len(whole_R),
        "spans": len(spans_Rx2),
        "bytes": int((cuts_Rx4[:, 3] - cuts_Rx4[:, 2]).sum()),
        "of_bytes": int(table["bytes"].sum()),
        "chunks": chunks,
        "examples": _examples(text, spans_Rx2),
    }


def _repeats(text: "Spool", data: DataConfig, folder: Path) -> tuple[int, np.ndarray]:
    """Returns the number of parts, and the spans that repeat earlier text."""
    edges = [0]
    total, chunk = int(text.starts_D[-1]), data.dedup_chunk_bytes
    part = total if total <= chunk else chunk // 2
    while edges[-1] < total:
        document = np.searchsorted(text.starts_D, min(edges[-1] + part, total))
        edges.append(int(text.starts_D[document]))
    parts = list(itertools.pairwise(edges))
    searches = list(itertools.combinations(parts, 2)) or [(p,) for p in parts]
    spans_Rx2 = np.zeros((0, 2), np.int64)
    for done, search in enumerate(searches, 1):
        name = "-".join(str(edge) for part in search for edge in part)
        path = folder / f"repeats-{name}.npy"
        if not path.exists():
            with files.replacing(path) as file:
                np.save(file, _search(text, search, data.dedup_bytes))
        spans_Rx2 = union(np.concatenate([spans_Rx2, np.load(path)]))
        if len(searches) > 1:
            logger.info(
                f"duplicates: {done} of {len(searches)} pairs of parts searched"
            )
    return len(parts), spans_Rx2


def _search(
    text: "Spool", parts: Sequence[tuple[int, int]], min_bytes: int
) -> np.ndarray:
    """Returns the spans of some parts that repeat earlier text of these parts."""
    spans_Rx2 = repeated(text.read(parts), min_bytes)
    starts, stops = np.array(parts).T
    firsts = np.cumsum(stops - starts) - (stops - starts)  # in what was searched
    of_R = np.searchsorted(firsts, spans_Rx2[:, 0], side="right") - 1
    return spans_Rx2 + (starts - firsts)[of_R][:, None]


def _examples(text: "Spool", spans_Rx2: np.ndarray) -> list[str]:
    """Returns the beginnings of spans from all over the text."""
    chosen = np.linspace(0, len(spans_Rx2) - 1, min(EXAMPLES, len(spans_Rx2)))
    examples = []
    for start, stop in spans_Rx2[chosen.astype(int)].tolist():
        data = text.read([(start, min(stop, start + 4 * EXAMPLE_CHARS))]).tobytes()
        examples.append(data.decode(errors="ignore")[:EXAMPLE_CHARS])
    return examples


class Spool:
    """All documents, a separator after each, as if they were one array of bytes.

    Attributes:
      table: an array of `DOCUMENT`.
      starts_D: where documents begin, and one more: the end.
    """

    def __init__(self, found: Sequence[File], data: DataConfig, folder: Path):
        """Reads all files, on all cores, and writes their text into the folder."""
        numbers, calls = itertools.count(), []
        for group in grouped(found):
            numbered = [(next(numbers), file) for file in group]
            calls.append((numbered, data, folder))
        spooled = processes.run(_spool, calls, "duplicates")
        tables = [np.load(table_path) for table_path, _ in spooled]
        self.table = np.concatenate(tables)
        sizes_D = self.table["bytes"].astype(np.int64) + 1
        self.starts_D = np.append(0, np.cumsum(sizes_D))
        # Where the files with text begin, and the end: G groups of files.
        self._starts_G = self.starts_D[np.cumsum([0, *map(len, tables)])].tolist()
        self._paths = [text_path for _, text_path in spooled]

    def documents_at(self, positions_R: np.ndarray) -> np.ndarray:
        """Returns the documents that bytes belong to."""
        return np.searchsorted(self.starts_D, positions_R, side="right") - 1

    def read(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Returns a copy of the bytes from start to stop of each span."""
        pieces = [np.zeros(0, np.uint8)]
        for start, stop in spans:
            groups = itertools.pairwise(self._starts_G)
            for (first, end), path in zip(groups, self._paths, strict=True):
                low, high = max(start, first), min(stop, end)
                if low < high:
                    text = np.memmap(path, np.uint8, "r")
                    pieces.append(text[low - first : high - first])
        return np.concatenate(pieces)


def _spool(
    numbered: Sequence[tuple[int, File]], data: DataConfig, folder: Path
) -> tuple[Path, Path]:
    """Writes the documents of some files, and their text, unless that is done.

    Returns:
      The paths of an array of `DOCUMENT`, and of the text for `data.dedup_bytes`.
    """
    first = numbered[0][0]
    table_path = folder / f"documents-{first:05d}.npy"
    text_path = folder / f"text-{first:05d}.bin"
    with_text = data.dedup_bytes > 0
    if table_path.exists() and (text_path.exists() or not with_text):
        return table_path, text_path
    table = bytearray()
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(files.replacing(text_path)) if with_text else None
        for number, file in numbered:
            for document in file.documents(ReadContext(data)):
                utf8 = document.encode()
                digest = hashlib.blake2b(utf8, digest_size=16).digest()
                table += PACKED.pack(number, len(utf8), digest)
                if out:
                    out.write(utf8 + bytes([SEPARATOR]))
    with files.replacing(table_path) as out:
        np.save(out, np.frombuffer(table, DOCUMENT))
    return table_path, text_path


def repeated(text_N: np.ndarray, min_bytes: int) -> np.ndarray:
    """Returns what repeats earlier text, as sorted spans that do not touch.

    The spans are the union of all windows of `min_bytes` bytes, each inside one
    document, whose first occurrence ends before they begin. So the first stays whole
    where text repeats itself immediately: `min_bytes` letters of "aaaa...".

    Memory: 13 bytes per byte of text (the text, its suffix array, ranks and common
    prefixes), 22 if all of it occurs twice; from 2 GiB on nearly twice as much.

    Args:
      text_N: uint8, writable, each document followed by `SEPARATOR`.
      min_bytes: at least 1.

    Returns:
      spans_Rx2, int64: start and stop.
    """
    import pydivsufsort  # an extra

    suffixes_N = pydivsufsort.divsufsort(text_N)
    prefixes_N = pydivsufsort.kasai(text_N, suffixes_N)  # with the next suffix
    same_N = prefixes_N >= min_bytes
    del prefixes_N
    # Suffixes with the same beginning are neighbours: a group. M: those in groups.
    after_same_N = np.append(False, same_N[:-1])
    in_group_N = same_N | after_same_N
    positions_M = suffixes_N[in_group_N]
    groups_G = np.flatnonzero(~after_same_N[in_group_N])
    del suffixes_N, same_N, after_same_N, in_group_N
    if not len(positions_M):
        return np.zeros((0, 2), np.int64)
    sizes_G = np.diff(groups_G, append=len(positions_M))
    first_M = np.repeat(np.minimum.reduceat(positions_M, groups_G), sizes_G)
    positions_W = positions_M[positions_M - first_M >= min_bytes]
    del positions_M, first_M, groups_G, sizes_G
    positions_W.sort()
    separators = np.flatnonzero(text_N == SEPARATOR)
    room_W = separators[np.searchsorted(separators, positions_W)] - positions_W
    positions_W = positions_W[room_W >= min_bytes].astype(np.int64)
    # Windows that overlap or touch are one span.
    begins_W = np.diff(positions_W, prepend=-min_bytes - 1) > min_bytes
    ends_W = np.append(begins_W[1:], True)[: len(begins_W)]
    return np.stack([positions_W[begins_W], positions_W[ends_W] + min_bytes], axis=1)


def union(spans_Rx2: np.ndarray) -> np.ndarray:
    """Returns the same bytes as sorted spans that do not touch."""
    starts_R, stops_R = spans_Rx2[np.argsort(spans_Rx2[:, 0], kind="stable")].T
    stops_R = np.maximum.accumulate(stops_R)
    begins_R = np.append(True, starts_R[1:] > stops_R[:-1])[: len(starts_R)]
    ends_R = np.append(begins_R[1:], True)[: len(starts_R)]
    return np.stack([starts_R[begins_R], stops_R[ends_R]], axis=1)

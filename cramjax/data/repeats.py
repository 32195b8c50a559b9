"""Finds runs of bytes that occurred before, by a suffix array.

After Lee et al., "Deduplicating Training Data Makes Language Models Better" (2022,
arXiv 2107.06499, section 4.1); here, the first occurrence always stays.
"""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cramjax import files
from cramjax.config import DataConfig
from cramjax.data.corpus import EXAMPLE_CHARS, EXAMPLES
from cramjax.data.readers import DOCUMENT_CHARS, File
from cramjax.errors import UserError

logger = logging.getLogger(__name__)

MAX_SEARCHES = 10_000  # each takes a minute or more
SEPARATOR = 0xFF  # after every document; never in UTF-8


def check(found: Sequence[File], data: DataConfig) -> None:
    """Refuses, before any work, what cannot be searched for repeats."""
    try:
        import pydivsufsort  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"config.data.dedup_bytes is {data.dedup_bytes}: needs the package "
            'pydivsufsort; pip install -e ".[dedup]" (or pip install pydivsufsort), or '
            "pass 0"
        ) from error
    chars = sum(file.expected_chars(DOCUMENT_CHARS) for file in found)
    searches = (2 * chars / data.dedup_chunk_bytes) ** 2 / 2
    if searches > MAX_SEARCHES:
        raise UserError(
            f"config.data.dedup_bytes is {data.dedup_bytes}: about {chars / 1e9:,.0f} "
            f"GB of text need {searches:,.0f} searches of a minute or more, above "
            f"{MAX_SEARCHES:,}; pass 0 and --config.data.near_duplicates=0.8, the time "
            "of which is linear, or search more at once "
            f"(config.data.dedup_chunk_bytes={data.dedup_chunk_bytes:,})"
        )


class Spool:
    """All documents, a separator after each, as if they were one array of bytes.

    Attributes:
      table: with a row for each document.
      firsts_G: the first document of each of G groups of files, and the end.
      starts_D: where documents begin, and one more: the end.
    """

    def __init__(self, tables: Sequence[np.ndarray], texts: Sequence[Path]):
        """Takes the table of each group, with a field "bytes", and its file of text."""
        self.table = np.concatenate(tables)
        sizes_D = self.table["bytes"].astype(np.int64) + 1
        self.starts_D = np.append(0, np.cumsum(sizes_D))
        self.firsts_G = np.cumsum([0, *map(len, tables)])
        self._starts_G = self.starts_D[self.firsts_G].tolist()
        self._paths = texts

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


def find(text: Spool, data: DataConfig, folder: Path) -> tuple[int, np.ndarray]:
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
            files.save_array(path, _search(text, search, data.dedup_bytes))
        spans_Rx2 = union(np.concatenate([spans_Rx2, np.load(path)]))
        if len(searches) > 1:
            logger.info(
                f"duplicates: {done} of {len(searches)} pairs of parts searched"
            )
    return len(parts), spans_Rx2


def _search(
    text: Spool, parts: Sequence[tuple[int, int]], min_bytes: int
) -> np.ndarray:
    """Returns the spans of some parts that repeat earlier text of these parts."""
    spans_Rx2 = repeated(text.read(parts), min_bytes)
    starts, stops = np.array(parts).T
    firsts = np.cumsum(stops - starts) - (stops - starts)  # in what was searched
    of_R = np.searchsorted(firsts, spans_Rx2[:, 0], side="right") - 1
    return spans_Rx2 + (starts - firsts)[of_R][:, None]


def examples(text: Spool, spans_Rx2: np.ndarray) -> list[str]:
    """Returns the beginnings of spans from all over the text."""
    chosen = np.linspace(0, len(spans_Rx2) - 1, min(EXAMPLES, len(spans_Rx2)))
    found = []
    for start, stop in spans_Rx2[chosen.astype(int)].tolist():
        data = text.read([(start, min(stop, start + 4 * EXAMPLE_CHARS))]).tobytes()
        found.append(data.decode(errors="ignore")[:EXAMPLE_CHARS])
    return found


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

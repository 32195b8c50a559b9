"""All documents of a corpus on disk, in stored order: lengths, hashes and text."""

import collections
import contextlib
import functools
import hashlib
import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cramjax import files
from cramjax.data import processes
from cramjax.data.encoding import Unit, read_all
from cramjax.data.readers import Reading
from cramjax.data.repeats import SEPARATOR

FILES = ("documents-*.npy", "text-*.bin")
# Of a document: its file's number in the unit, bytes of its UTF-8, and its hash.
DOCUMENT = np.dtype([("file", "<i4"), ("bytes", "<i4"), ("digest", "<u8", 2)])
PACKED = struct.Struct("<ii16s")  # the same, made faster


def fill(
    units: Sequence[Unit], reading: Reading, folder: Path, with_text: bool
) -> None:
    """Reads all units, as many at once as there are cores, for a `Spool`.

    A unit whose files are there already is skipped.
    """
    fill_one = functools.partial(
        _fill_unit, reading=reading, folder=folder, with_text=with_text
    )
    workers = min(processes.cores(), len(units))
    if workers == 1:
        for unit in units:
            fill_one(unit)
        return
    with processes.pool(workers, 1) as pool:
        for future in [pool.submit(fill_one, unit) for unit in units]:
            future.result()


def _fill_unit(unit: Unit, reading: Reading, folder: Path, with_text: bool) -> None:
    table_path, text_path = _table_path(folder, unit), _text_path(folder, unit)
    if table_path.exists() and (text_path.exists() or not with_text):
        return
    table = bytearray()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(files.replacing(text_path)) if with_text else None
        for number, portion in enumerate(unit.portions):
            for document in read_all([portion], reading, collections.Counter()):
                data = document.encode()
                digest = hashlib.blake2b(data, digest_size=16).digest()
                table += PACKED.pack(number, len(data), digest)
                if file:
                    file.write(data + bytes([SEPARATOR]))
    with files.replacing(table_path) as file:
        np.save(file, np.frombuffer(table, DOCUMENT))


def _table_path(folder: Path, unit: Unit) -> Path:
    return folder / f"documents-{unit.number:05d}.npy"


def _text_path(folder: Path, unit: Unit) -> Path:
    return folder / f"text-{unit.number:05d}.bin"


class Spool:
    """All documents, a separator behind each, as if they were one array of bytes.

    Attributes:
      units: whose text it is.
      tables: of each unit, an array of `DOCUMENT`.
      starts_D: where documents begin, and one more: the end.
      documents_U: the units' first documents, and one more.
      starts_U: where units begin, and one more.
    """

    def __init__(self, units: Sequence[Unit], folder: Path):
        """Opens what `fill` wrote."""
        self.units, self._folder = units, folder
        self.tables = [np.load(_table_path(folder, unit)) for unit in units]
        sizes = [table["bytes"] + 1 for table in self.tables]
        self.starts_D = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64)
        self.documents_U = np.cumsum([0, *map(len, self.tables)])
        self.starts_U = self.starts_D[self.documents_U]

    def digests(self) -> np.ndarray:
        """Returns digests_Dx2 of all documents."""
        return np.concatenate([table["digest"] for table in self.tables])

    def documents_at(self, positions_R: np.ndarray) -> np.ndarray:
        """Returns the documents that bytes belong to."""
        return np.searchsorted(self.starts_D, positions_R, side="right") - 1

    def read(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Returns a copy of the bytes from start to stop of each span."""
        text_N = np.empty(sum(stop - start for start, stop in spans), np.uint8)
        edges = self.starts_U.tolist()
        filled = 0
        for start, stop in spans:
            for number, (first, end) in enumerate(itertools.pairwise(edges)):
                low, high = max(start, first), min(stop, end)
                if low < high:
                    piece = self.unit_text(number)[low - first : high - first]
                    text_N[filled : filled + len(piece)] = piece
                    filled += len(piece)
        return text_N

    def unit_text(self, number: int) -> np.ndarray:
        """Returns a unit's bytes, memory-mapped; it must have documents."""
        return np.memmap(_text_path(self._folder, self.units[number]), np.uint8, "r")

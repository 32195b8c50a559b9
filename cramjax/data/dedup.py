"""Text that occurred before: equal documents, and repeats inside and across them.

Exact substrings after Lee et al., "Deduplicating Training Data Makes Language Models
Better" (2022, arXiv 2107.06499, section 4.1); here, the first occurrence always stays.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files
from cramjax.data import cuts, repeats, spool
from cramjax.data.encoding import EXAMPLE_CHARS, EXAMPLES, Unit, read_all
from cramjax.data.readers import Reading
from cramjax.data.spool import Spool
from cramjax.schema import DataConfig

FOUND = "duplicates.json"  # written last


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is dropped; see `schema.DataConfig`."""

    drop_documents: bool
    min_bytes: int
    chunk_bytes: int

    @classmethod
    def of(cls, config: DataConfig) -> "Rules":
        """Returns what the config says."""
        return cls(config.drop_duplicates, config.dedup_bytes, config.dedup_chunk_bytes)

    @property
    def on(self) -> bool:
        """Whether anything may be dropped."""
        return self.drop_documents or self.min_bytes > 0

    def settings(self) -> dict[str, Any]:
        """Returns what changes the blocks: nothing of what is off, nor the chunks."""
        settings = {
            "drop_duplicates": self.drop_documents,
            "dedup_bytes": self.min_bytes,
        }
        return {key: value for key, value in settings.items() if value}


def find(
    units: Sequence[Unit],
    reading: Reading,
    rules: Rules,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Leaves every unit's cuts (see `cuts.load`) in the folder.

    Documents are compared as they are read, stripped, before the normaliser: 16 bytes
    of BLAKE2b tell them apart. This takes 80 bytes of memory a document.

    Repeats are found wherever they are. More text than `rules.chunk_bytes` is cut into
    parts of half of it (a document more at most), and every two parts are searched
    together: memory is that of one chunk (see `repeats.repeated`), in one process, and
    time grows with the square of the text. Meanwhile the text is on the disk, in the
    folder. The text that is left on both sides of a cut is joined, and what that makes
    is not searched again.

    Stopped at any moment, the same call goes on, to the same cuts.

    Returns:
      {"documents" (equal to an earlier one), "spans" (cut out of others), "bytes" (of
      both), "of_bytes" (text in all), "chunks" (parts of it; 1: all at once),
      "examples" ({"documents", "spans"}: beginnings of some)}; {} if nothing is to be
      dropped.

    Raises:
      UserError: the package for suffix arrays is missing; see also
        `sources.documents`.
    """
    if not rules.on:
        return {}
    start = time.monotonic()
    found = folder / FOUND
    written = [found, *(cuts.path_of(folder, unit.number) for unit in units)]
    if not all(path.exists() for path in written):
        files.write_json(found, _find(units, reading, rules, folder, say))
    for pattern in (*spool.FILES, "repeats-*.npy"):
        for path in folder.glob(pattern):
            path.unlink()
    facts = files.read_json(found, "run again")
    say(
        f"duplicates: {facts['documents']:,} documents and {facts['spans']:,} spans "
        f"dropped, {facts['bytes'] / 1e6:,.1f} of {facts['of_bytes'] / 1e6:,.1f} MB, "
        f"{time.monotonic() - start:.0f}s"
    )
    return facts


def _find(
    units: Sequence[Unit],
    reading: Reading,
    rules: Rules,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    if rules.min_bytes:
        repeats.require_package(rules.min_bytes)
    spool.fill(units, reading, folder, with_text=rules.min_bytes > 0)
    text = Spool(units, folder)
    duplicate_D = np.zeros(text.documents_U[-1], bool)
    if rules.drop_documents:
        duplicate_D = _equal_to_earlier(text.digests())
    chunks, spans_Rx2 = 0, np.zeros((0, 2), np.int64)
    if rules.min_bytes:
        chunks, spans_Rx2 = _repeats(text, rules, folder, say)
        spans_Rx2 = spans_Rx2[~duplicate_D[text.documents_at(spans_Rx2[:, 0])]]
    rows = size = 0
    for number, unit in enumerate(units):
        cuts_Rx4 = _unit_cuts(text, number, duplicate_D, spans_Rx2)
        with files.replacing(cuts.path_of(folder, unit.number)) as file:
            np.save(file, cuts_Rx4)
        rows += len(cuts_Rx4)
        size += int((cuts_Rx4[:, 3] - cuts_Rx4[:, 2]).sum())
    documents = int(duplicate_D.sum())
    return {
        "documents": documents,
        "spans": rows - documents,
        "bytes": size,
        "of_bytes": sum(int(table["bytes"].sum()) for table in text.tables),
        "chunks": chunks,
        "examples": {
            "documents": _document_examples(text, reading, duplicate_D),
            "spans": _span_examples(text, spans_Rx2),
        },
    }


def _equal_to_earlier(digests_Dx2: np.ndarray) -> np.ndarray:
    order_D = np.lexsort(digests_Dx2.T)  # stable: of equal ones, the first comes first
    sorted_Dx2 = digests_Dx2[order_D]
    equal_D = np.zeros(len(order_D), bool)
    equal_D[order_D[1:]] = (sorted_Dx2[1:] == sorted_Dx2[:-1]).all(axis=1)
    return equal_D


def _repeats(
    text: Spool, rules: Rules, folder: Path, say: Callable[[str], None]
) -> tuple[int, np.ndarray]:
    """Returns the number of parts, and the spans that repeat earlier text."""
    edges = [0]
    total = int(text.starts_D[-1])
    part = total if total <= rules.chunk_bytes else rules.chunk_bytes // 2
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
                np.save(file, _search(text, search, rules.min_bytes))
        spans_Rx2 = repeats.union(np.concatenate([spans_Rx2, np.load(path)]))
        if len(searches) > 1:
            say(f"duplicates: {done} of {len(searches)} pairs of parts searched")
    return len(parts), spans_Rx2


def _search(
    text: Spool, parts: Sequence[tuple[int, int]], min_bytes: int
) -> np.ndarray:
    """Returns the spans of some parts that repeat earlier text of these parts."""
    spans_Rx2 = repeats.repeated(text.read(parts), min_bytes)
    starts, stops = np.array(parts).T
    firsts = np.cumsum(stops - starts) - (stops - starts)  # in what was searched
    of_R = np.searchsorted(firsts, spans_Rx2[:, 0], side="right") - 1
    return spans_Rx2 + (starts - firsts)[of_R][:, None]


def _unit_cuts(
    text: Spool, number: int, duplicate_D: np.ndarray, spans_Rx2: np.ndarray
) -> np.ndarray:
    """Returns cuts_Rx4 of a unit, see `cuts.load`: documents as a whole, and spans."""
    table = text.tables[number]
    first, last = text.documents_U[number : number + 2]
    whole_R = np.flatnonzero(duplicate_D[first:last])
    whole_Rx2 = np.stack([np.zeros_like(whole_R), table["bytes"][whole_R]], axis=1)
    start, stop = text.starts_U[number : number + 2]
    spans_Rx2 = spans_Rx2[slice(*np.searchsorted(spans_Rx2[:, 0], [start, stop]))]
    spans_Rx2 = spans_Rx2 - start
    if len(spans_Rx2):
        spans_Rx2 = repeats.whole_characters(text.unit_text(number), spans_Rx2)
    of_R = text.documents_at(start + spans_Rx2[:, 0])
    spans_Rx2 = spans_Rx2 - (text.starts_D[of_R] - start)[:, None]
    documents_R = np.concatenate([of_R - first, whole_R])
    files_R = table["file"][documents_R]
    in_file_R = documents_R - np.searchsorted(table["file"], files_R)
    cuts_Rx4 = np.column_stack(
        [files_R, in_file_R, np.concatenate([spans_Rx2, whole_Rx2])]
    )
    return cuts_Rx4[np.lexsort(cuts_Rx4.T[::-1])]


def _document_examples(
    text: Spool, reading: Reading, duplicate_D: np.ndarray
) -> list[str]:
    """Reads the first dropped documents once more."""
    examples: list[str] = []
    of_units = np.split(duplicate_D, text.documents_U[1:-1])
    for unit, duplicate in zip(text.units, of_units, strict=True):
        wanted = set(np.flatnonzero(duplicate)[: EXAMPLES - len(examples)].tolist())
        if wanted:
            documents = read_all(unit.portions, reading, collections.Counter())
            some = enumerate(itertools.islice(documents, max(wanted) + 1))
            examples += [d[:EXAMPLE_CHARS] for n, d in some if n in wanted]
    return examples


def _span_examples(text: Spool, spans_Rx2: np.ndarray) -> list[str]:
    """Returns the beginnings of spans from all over the text."""
    chosen = np.linspace(0, len(spans_Rx2) - 1, min(EXAMPLES, len(spans_Rx2)))
    examples = []
    for start, stop in spans_Rx2[chosen.astype(int)].tolist():
        data = text.read([(start, min(stop, start + 4 * EXAMPLE_CHARS))]).tobytes()
        examples.append(data.decode(errors="ignore")[:EXAMPLE_CHARS])
    return examples

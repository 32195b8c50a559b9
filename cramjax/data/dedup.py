"""Drops text that occurred before: equal and similar documents, repeated runs of bytes.

All text is read once, and what to cut out of it is written down. The files that
`deduplicated` returns apply these cuts as their documents are read.

Documents are compared by digests: of a document's text, and of parts of its MinHash.
Those of each group of files are sorted. A partition is a range of digests: its slices
of all groups are merged, and equal neighbours are matches.
"""

import bisect
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
from cramjax.data import minhash, repeats
from cramjax.data.corpus import EXAMPLE_CHARS, EXAMPLES
from cramjax.data.readers import File, ReadContext
from cramjax.data.sources import grouped
from cramjax.data.stages import Stage, Unit, exists, remove

logger = logging.getLogger(__name__)

FOUND, CUTS = "duplicates.json", "cuts.npy"  # FOUND is written last
TEMPORARY = (
    *("tables-*.npy", "text-*.bin", "digests-*.npy", "signatures-*.npy"),
    *("matches-*.npy", "repeats-*.npy"),
)
STAGES = ("documents", "matches", "cuts")
PARTITION_BYTES = 1 << 30  # of files, whose digests are sorted at once
# A row of a table: a document's file, its number in that, and the bytes of its UTF-8.
DOCUMENT = np.dtype([("file", "<i4"), ("document", "<i4"), ("bytes", "<i4")])
PACKED = struct.Struct("<iii")  # the same, faster to write
# A digest of a document, and its position: the number of its group and its row in the
# group's table of documents. Positions are in the order of the text.
DIGEST = np.dtype([("digest", "<u8", 2), ("position", "<i8")])
ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1
PAIRS = 1 << 16  # whose signatures are compared at once
CONTINUATION = [bytes([byte]) for byte in range(0x80, 0xC0)]  # inside a character


def is_on(data: DataConfig) -> bool:
    """Returns whether anything is dropped."""
    return bool(data.drop_duplicates or data.near_duplicates or data.dedup_bytes)


def stages(found: Sequence[File], data: DataConfig, folder: Path) -> Iterator[Stage]:
    """Yields the stages after which `deduplicated` gives the text without repeats.

    Documents are compared as they are read, stripped, before the normalizer. Two are
    equal if 16 bytes of BLAKE2b are. With `data.near_duplicates`, two are similar if at
    least that fraction of their MinHash agrees (see `minhash`); of documents that are
    connected by such pairs, the first stays. Every partition is sorted in memory: about
    0.1 GB for equal documents, a gigabyte for similar ones.

    Repeats are found wherever they are. More text than `data.dedup_chunk_bytes` is
    divided into parts of half of it (a document more at most), and every two parts are
    searched together: memory is that of one chunk (see `repeats.repeated`), and time
    grows with the square of the text. Meanwhile the text is on the disk, in the folder.
    The text on both sides of a cut is joined, and the result is not searched again.

    After an interruption, the same stages continue, to the same cuts.

    Raises:
      UserError: the package for suffix arrays is missing, or there is too much text to
        search it for repeats; see also `File.documents`.
    """
    if data.dedup_bytes:
        repeats.check(found, data)
    finished = folder / FOUND
    if not (folder / CUTS).exists():
        finished.unlink(missing_ok=True)
    if not finished.exists():
        numbers, groups = itertools.count(), grouped(found)
        numbered = [[(next(numbers), file) for file in group] for group in groups]
        units, common = [], (data, folder)
        for i, group in enumerate(numbered):
            done = exists(_path(folder, "tables", i), finished)
            units.append(Unit(done, _spool, (i, group, *common)))
        yield "documents", units
        partitions = 1 + sum(file.size for file in found) // PARTITION_BYTES
        units = []
        for i in range(partitions):
            done = exists(_path(folder, "matches", i), finished)
            units.append(Unit(done, _match, (i, partitions, len(groups), *common)))
        yield "matches", units
        cuts = (found, len(groups), partitions, *common)
        yield "cuts", [Unit(exists(finished), _find_cuts, cuts)]
    remove(folder, TEMPORARY)


def _path(folder: Path, what: str, number: int) -> Path:
    return folder / f"{what}-{number:05d}.npy"


def _text_path(folder: Path, group: int) -> Path:
    return folder / f"text-{group:05d}.bin"


def deduplicated(
    found: Sequence[File], folder: Path
) -> tuple[list[File], dict[str, Any]]:
    """Returns files without what occurred before, when all `stages` are done.

    Returns:
      The files, and {"documents" (equal to an earlier one), "spans" (cut out of
      others), "bytes" (of all that is dropped), "of_bytes" (text in all), "chunks"
      (parts that were searched for repeats; 1: all at once), "examples" (beginnings of
      some spans)}; with `data.near_duplicates`, also "of_documents", "similar" (to an
      earlier document, not counting equal ones) and "similar_examples" (beginnings:
      kept, dropped, kept, dropped ...).
    """
    facts = files.read_json(folder / FOUND, "run again")
    cut = functools.partial(_without, folder / CUTS)
    return [
        dataclasses.replace(file, transform=functools.partial(cut, number))
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


def _spool(
    group: int, numbered: Sequence[tuple[int, File]], data: DataConfig, folder: Path
) -> None:
    """Writes the table of some files' documents, their digests, signatures and text."""
    path = _path(folder, "tables", group)
    text_path = _text_path(folder, group)
    if path.exists() and (text_path.exists() or not data.dedup_bytes):
        return
    table, digests, mins = bytearray(), bytearray(), bytearray()
    with contextlib.ExitStack() as stack:
        out = None
        if data.dedup_bytes:
            out = stack.enter_context(files.replacing(text_path))
        for number, file in numbered:
            for at, document in enumerate(file.documents(ReadContext(data))):
                utf8 = document.encode()
                table += PACKED.pack(number, at, len(utf8))
                if data.drop_duplicates:
                    digests += hashlib.blake2b(utf8, digest_size=16).digest()
                if data.near_duplicates:
                    mins += minhash.signature(utf8).tobytes()
                if out:
                    out.write(utf8 + bytes([repeats.SEPARATOR]))
    table_D = np.frombuffer(table, DOCUMENT)
    digests_DxBx2 = np.frombuffer(digests, "<u8").reshape(-1, 1, 2)
    if data.near_duplicates:
        mins_DxK = np.frombuffer(mins, np.uint32).reshape(len(table_D), minhash.HASHES)
        bands = minhash.band_digests(mins_DxK, minhash.band_rows(data.near_duplicates))
        digests_DxBx2 = np.concatenate(
            [bands, *([digests_DxBx2] if data.drop_duplicates else [])], axis=1
        )
        files.save_array(_path(folder, "signatures", group), mins_DxK.astype(np.uint16))
    records = np.empty(digests_DxBx2.shape[:2], DIGEST)
    records["digest"] = digests_DxBx2
    records["position"] = (group << ROW_BITS) + np.arange(len(records))[:, None]
    files.save_array(_path(folder, "digests", group), _sorted(records.ravel()))
    files.save_array(path, table_D)


def _sorted(records: np.ndarray) -> np.ndarray:
    """Returns an array of `DIGEST` by digest; equal ones stay in their order."""
    return records[np.lexsort(records["digest"].T[::-1])]


def _match(
    partition: int, partitions: int, groups: int, data: DataConfig, folder: Path
) -> None:
    """Writes matches_Mx3: pairs of positions, and 1 for similar or 0 for equal ones.

    Of the documents that have a digest in common, equal ones are paired with the first,
    similar ones with the first and with the one before.
    """
    path = _path(folder, "matches", partition)
    if path.exists():
        return
    edges = [(p << 64) // partitions for p in (partition, partition + 1)]
    slices = []
    for group in range(groups):
        sorted_R = np.load(_path(folder, "digests", group), mmap_mode="r")
        start, stop = (
            bisect.bisect_left(sorted_R, edge, key=lambda record: int(record[0][0]))
            for edge in edges
        )
        slices.append(np.array(sorted_R[start:stop]))
    records_R = _sorted(np.concatenate(slices))
    digests_Rx2, positions_R = records_R["digest"], records_R["position"]
    again_R = np.ones(len(records_R), bool)
    again_R[:1] = False
    again_R[1:] = (digests_Rx2[1:] == digests_Rx2[:-1]).all(axis=1)
    firsts_R = np.maximum.accumulate(np.arange(len(again_R)) * ~again_R)
    # Of each: the first document with its digest, the one before it, and itself.
    triples_Rx3 = np.stack(
        [positions_R[firsts_R], np.roll(positions_R, 1), positions_R], 1
    )
    # The digests of bands have a small number as their second half.
    of_band_R = digests_Rx2[:, 1] < minhash.HASHES
    matches = [np.insert(triples_Rx3[again_R & ~of_band_R][:, ::2], 2, 0, axis=1)]
    triples_Rx3 = triples_Rx3[again_R & of_band_R]
    pairs_Mx2 = np.concatenate([triples_Rx3[:, ::2], triples_Rx3[:, 1:]])
    pairs_Mx2 = np.unique(pairs_Mx2, axis=0)
    for start in range(0, len(pairs_Mx2), PAIRS):
        some_Mx2 = pairs_Mx2[start : start + PAIRS]
        a_MxK, b_MxK = (_signatures(column, folder) for column in some_Mx2.T)
        some_Mx2 = some_Mx2[(a_MxK == b_MxK).mean(axis=1) >= data.near_duplicates]
        matches.append(np.insert(some_Mx2, 2, 1, axis=1))
    files.save_array(path, np.concatenate(matches))


def _signatures(positions_M: np.ndarray, folder: Path) -> np.ndarray:
    """Returns signatures_MxK: the minima of some documents, the lower half of each."""
    groups_M, rows_M = positions_M >> ROW_BITS, positions_M & ROW_MASK
    signatures_MxK = np.empty((len(positions_M), minhash.HASHES), np.uint16)
    for group in np.unique(groups_M):
        here_M = groups_M == group
        of_group = np.load(_path(folder, "signatures", group), mmap_mode="r")
        signatures_MxK[here_M] = of_group[rows_M[here_M]]
    return signatures_MxK


def _find_cuts(
    found: Sequence[File], groups: int, partitions: int, data: DataConfig, folder: Path
) -> None:
    """Writes cuts_Rx4, see `_without`, and the facts about them."""
    start, most_pairs = time.monotonic(), PAIRS
    equal, pairs_Sx2 = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    for i in range(partitions):
        matches_Mx3 = np.load(_path(folder, "matches", i))
        similar_M = matches_Mx3[:, 2] == 1
        equal = np.append(equal, matches_Mx3[~similar_M, 1])
        # A pair is in many partitions. One pair for each document says as much.
        pairs_Sx2 = np.concatenate([pairs_Sx2, matches_Mx3[similar_M, :2]])
        if len(pairs_Sx2) > most_pairs or i + 1 == partitions:
            pairs_Sx2 = _with_first(pairs_Sx2)
            most_pairs = 2 * len(pairs_Sx2) + PAIRS
    whole = np.union1d(equal, pairs_Sx2[:, 1])
    of_documents = of_bytes = chunks = 0
    cuts, spans_Rx2, examples = [], np.zeros((0, 2), np.int64), []
    for group in range(groups):
        table = np.load(_path(folder, "tables", group))
        of_documents += len(table)
        of_bytes += int(table["bytes"].sum())
        first = group << ROW_BITS
        low, high = np.searchsorted(whole, [first, first + (1 << ROW_BITS)])
        dropped_Rx3 = table[whole[low:high] - first].view("<i4").reshape(-1, 3)
        cuts.append(np.insert(dropped_Rx3.astype(np.int64), 2, 0, axis=1))
    if data.dedup_bytes:
        tables = [np.load(_path(folder, "tables", group)) for group in range(groups)]
        texts = [_text_path(folder, group) for group in range(groups)]
        text = repeats.Spool(tables, texts)
        chunks, spans_Rx2 = repeats.find(text, data, folder)
        of_R = np.searchsorted(text.starts_D, spans_Rx2[:, 0], side="right") - 1
        groups_R = np.searchsorted(text.firsts_G, of_R, side="right") - 1
        positions_R = (groups_R << ROW_BITS) + of_R - text.firsts_G[groups_R]
        kept_R = ~np.isin(positions_R, whole)
        spans_Rx2, of_R = spans_Rx2[kept_R], of_R[kept_R]
        in_document_Rx2 = spans_Rx2 - text.starts_D[of_R][:, None]
        rows = text.table[of_R]
        cuts.append(np.column_stack([rows["file"], rows["document"], in_document_Rx2]))
        examples = repeats.examples(text, spans_Rx2)
    cuts_Rx4 = np.concatenate(cuts)
    files.save_array(folder / CUTS, cuts_Rx4[np.lexsort(cuts_Rx4.T[::-1])])
    facts = {
        "documents": len(equal),
        "spans": len(spans_Rx2),
        "bytes": int((cuts_Rx4[:, 3] - cuts_Rx4[:, 2]).sum()),
        "of_bytes": of_bytes,
        "chunks": chunks,
        "examples": examples,
    }
    if data.near_duplicates:
        facts["of_documents"], facts["similar"] = of_documents, len(whole) - len(equal)
        facts["similar_examples"] = _similar_examples(pairs_Sx2, found, data, folder)
    files.write_record(folder / FOUND, facts)
    logger.info(
        f"duplicates: {len(equal):,} documents and {len(spans_Rx2):,} spans dropped, "
        + (f"{facts['similar']:,} similar ones, " if data.near_duplicates else "")
        + f"{facts['bytes'] / 1e6:,.1f} of {of_bytes / 1e6:,.1f} MB, "
        f"{time.monotonic() - start:.0f}s"
    )


def _with_first(pairs_Mx2: np.ndarray) -> np.ndarray:
    """Returns pairs_Sx2: the first of connected documents, with each of the others."""
    from scipy import sparse  # slow to import

    nodes_N, numbers = np.unique(pairs_Mx2, return_inverse=True)
    edges = np.ones(len(pairs_Mx2)), tuple(numbers.reshape(-1, 2).T)
    graph = sparse.coo_array(edges, (len(nodes_N),) * 2)
    _, labels_N = sparse.csgraph.connected_components(graph, directed=False)
    _, firsts, of_N = np.unique(labels_N, return_index=True, return_inverse=True)
    pairs_Nx2 = np.stack([nodes_N[firsts[of_N]], nodes_N], axis=1)
    return pairs_Nx2[pairs_Nx2[:, 0] != pairs_Nx2[:, 1]]


def _similar_examples(
    pairs_Sx2: np.ndarray, found: Sequence[File], data: DataConfig, folder: Path
) -> list[list[str]]:
    """Returns the beginnings of pairs of which little has to be read again."""
    rows_S = (pairs_Sx2 & ROW_MASK).sum(axis=1)
    examples = []
    for position in pairs_Sx2[np.argsort(rows_S, kind="stable")[:EXAMPLES]].ravel():
        table = np.load(_path(folder, "tables", position >> ROW_BITS))
        document = table[position & ROW_MASK]
        texts = found[document["file"]].documents(ReadContext(data))
        text = next(itertools.islice(texts, int(document["document"]), None), "")
        examples.append(text[:EXAMPLE_CHARS])
    return examples

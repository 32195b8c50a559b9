"""Where text comes from: files, one document at a time, in bounded memory."""

import bz2
import collections
import csv
import dataclasses
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import pyarrow
from pyarrow import parquet

from cramjax.errors import UserError
from cramjax.schema import DataConfig, require

EMBEDDED = {"embedded:books": "demo/books.txt.xz"}
COMPRESSIONS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": lambda path: pyarrow.input_stream(str(path), compression="zstd"),
}
# What a decompressor says of a file that was cut or changed.
DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error, pyarrow.ArrowInvalid)
# Longer documents are cut, or one file without a blank line could fill the memory.
MAX_DOCUMENT_CHARS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are read; see `schema.DataConfig`."""

    text_field: str
    txt_documents: str

    @classmethod
    def of(cls, config: DataConfig) -> "Reading":
        """Returns what the config says."""
        return cls(config.text_field, config.txt_documents)


def resolve(sources: Sequence[str]) -> list[Path]:
    """Returns the files that `config.data.sources` names, in order.

    Raises:
      UserError: there is none, a path or glob matches no file, or nobody reads a
        suffix.
    """
    require(
        len(sources) > 0,
        "data.sources",
        sources,
        "the text to train on, e.g. --config.data.sources=\"('texts/*.txt.gz',)\"",
    )
    paths = []
    for source in sources:
        if source.startswith("embedded:"):
            if source not in EMBEDDED:
                raise UserError(
                    f"config.data.sources: {source!r} is not one of {list(EMBEDDED)}"
                )
            matches = [str(resources.files("cramjax") / EMBEDDED[source])]
        else:
            matches = sorted(glob.glob(str(Path(source).expanduser()), recursive=True))
            matches = [m for m in matches if Path(m).is_file()]
        if not matches:
            raise UserError(
                f"config.data.sources: {source!r} matches no file; pass paths or "
                "globs, e.g. --config.data.sources=\"('texts/*.txt.gz',)\""
            )
        for match in matches:
            packed_parquet = _format(Path(match)) == ".parquet" != Path(match).suffix
            if _format(Path(match)) not in READERS or packed_parquet:
                raise UserError(
                    f"config.data.sources: {match} is none of {', '.join(READERS)} "
                    f"(plain or {', '.join(COMPRESSIONS)}; .parquet plain); convert or "
                    "rename it"
                )
        paths += [Path(m).resolve() for m in matches]
    return paths


def read_documents(
    path: Path, reading: Reading, problems: collections.Counter[str]
) -> Iterator[str]:
    """Yields a file's documents, stripped, without the empty ones.

    In `.txt` a document is what `reading.txt_documents` says; in `.jsonl` a line, in
    `.csv` and `.parquet` a row, with the text in `reading.text_field`. What is broken
    is left out or mended, and counted: bytes that are not UTF-8 become U+FFFD and
    halves of surrogate pairs "?", lines that are not JSON are skipped, of a file that
    is damaged all before the damage is read, a document longer than
    `MAX_DOCUMENT_CHARS` becomes several.

    Args:
      path: the file; its suffixes say what it is.
      reading: the rules.
      problems: {what: how often}, counted up while reading.

    Raises:
      UserError: a record has no such field, or the file cannot be read at all.
    """
    texts = READERS[_format(path)](path, reading, problems)
    empty = True
    while True:
        try:
            text = next(texts, None)
        except DAMAGE as error:
            if getattr(error, "errno", None) is not None:  # the disk's, not the file's
                raise UserError(
                    f"config.data.sources: {path} cannot be read ({error})"
                ) from error
            problems[f"{path.name} is damaged: {error}"] += 1
            return
        if text is None:
            break
        parts = range(0, len(text), MAX_DOCUMENT_CHARS)
        if len(parts) > 1:
            problems["documents cut for their length"] += len(parts) - 1
        for start in parts:
            part = text[start : start + MAX_DOCUMENT_CHARS].strip()
            part = part.encode(errors="replace").decode()
            if "\ufffd" in part:
                problems["documents with bytes that are not UTF-8"] += 1
            empty = empty and not part
            if part:
                yield part
    if empty:
        problems["files without text"] += 1


def _format(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def _open(path: Path) -> io.TextIOWrapper:
    opener = COMPRESSIONS.get(path.suffix, lambda path: path.open("rb"))
    return io.TextIOWrapper(opener(path), encoding="utf-8-sig", errors="replace")


def _txt(
    path: Path, reading: Reading, problems: collections.Counter[str]
) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    with _open(path) as file:
        # Yields what it has when the file turns out to be damaged, too.
        try:
            while line := file.readline(MAX_DOCUMENT_CHARS):
                blank = reading.txt_documents == "blank_line" and not line.strip()
                full = size + len(line) > MAX_DOCUMENT_CHARS
                if full:
                    problems["documents cut for their length"] += 1
                if lines and (blank or full or reading.txt_documents == "line"):
                    yield "".join(lines)
                    lines, size = [], 0
                lines.append(line)
                size += len(line)
        except DAMAGE:
            yield "".join(lines)
            raise
    yield "".join(lines)


def _jsonl(
    path: Path, reading: Reading, problems: collections.Counter[str]
) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                problems["lines that are not JSON"] += 1
                continue
            fields = sorted(record) if isinstance(record, dict) else type(record)
            text = record.get(reading.text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise _no_field(f"{path}:{number}", reading, fields)
            yield text


def _csv(
    path: Path, reading: Reading, problems: collections.Counter[str]
) -> Iterator[str]:
    csv.field_size_limit(1 << 30)
    with _open(path) as file:
        rows = csv.reader(file)
        names = _next_row(rows, problems) or []
        if reading.text_field not in names:
            raise _no_field(str(path), reading, names)
        column = names.index(reading.text_field)
        while (row := _next_row(rows, problems)) is not None:
            if column < len(row):
                yield row[column]


def _next_row(
    rows: Iterator[list[str]], problems: collections.Counter[str]
) -> list[str] | None:
    while True:
        try:
            return next(rows, None)
        except csv.Error:
            problems["rows that are not CSV"] += 1


def _parquet(
    path: Path, reading: Reading, problems: collections.Counter[str]
) -> Iterator[str]:
    del problems
    with parquet.ParquetFile(path) as file:
        types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
        if not _is_text(types.get(reading.text_field)):
            raise _no_field(str(path), reading, list(types))
        for batch in file.iter_batches(1000, columns=[reading.text_field]):
            for text in batch.column(0).cast(pyarrow.large_binary()):
                yield (text.as_py() or b"").decode(errors="replace")


def _is_text(kind: pyarrow.DataType | None) -> bool:
    tests = ("is_string", "is_large_string", "is_binary", "is_large_binary")
    return kind is not None and any(getattr(pyarrow.types, t)(kind) for t in tests)


def _no_field(where: str, reading: Reading, fields: object) -> UserError:
    return UserError(
        f"{where} has no text in the field {reading.text_field!r}; it has {fields}: "
        "pass one of them as --config.data.text_field"
    )


READERS = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}

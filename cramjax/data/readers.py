"""From a file to its documents: formats, compressions, and what may be broken in them.

What is broken is counted, and reading goes on after it.
"""

import bz2
import collections
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from cramjax.config import DataConfig
from cramjax.data.fingerprints import Fingerprints
from cramjax.errors import SourceLost, UserError

COMPRESSIONS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": lambda file: pyarrow.input_stream(file, compression="zstd"),
}
# Characters in a byte of a compressed file: of C4, The Pile and Wikipedia, roughly.
EXPANSION = {".gz": 2.5, ".zst": 3, ".xz": 4, ".bz2": 4, ".parquet": 1.7}
# What a decompressor raises for a file that was truncated or changed.
DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error, pyarrow.ArrowInvalid)
# Longer documents are cut, or one file without a blank line could fill the memory.
MAX_DOCUMENT_CHARS = 1 << 22
MAX_RECORD_CHARS = 1 << 26  # a line of .jsonl or field of .csv; longer are left out
BATCH_ROWS = 64  # of .parquet, read at once
TEXT_TYPES = (
    *(pyarrow.string(), pyarrow.large_string()),
    *(pyarrow.binary(), pyarrow.large_binary()),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """A local file, and how much of it is taken.

    Attributes:
      path: its suffixes say what is in it.
      source: the index in `config.data.sources` of the source that named it.
      weight: the fraction of the corpus's text that it is expected to give.
      max_chars: no document begins after so many characters; None for no limit.
      max_documents: None for no limit.
      transform: of the stream of its documents, for example to drop duplicates. It
        comes after everything else.
    """

    path: PurePath
    source: int = 0
    weight: float = 1.0
    max_chars: int | None = None
    max_documents: int | None = None
    transform: Callable[[Iterator[str]], Iterator[str]] = iter

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return Path(self.path).stat().st_size

    def fingerprint(self, known: Fingerprints) -> dict[str, Any]:
        """Returns {"path", "bytes", "sha256"}."""
        return known.file(Path(self.path))

    def open(self) -> BinaryIO:
        """Opens the file for reading, at any position."""
        return Path(self.path).open("rb")

    def expected_chars(self, document_chars: float) -> float:
        """Returns about how many characters are taken, given those of a document."""
        limits = [self.size * EXPANSION.get(self.path.suffix, 1)]
        if self.max_chars is not None:
            limits.append(self.max_chars)
        if self.max_documents is not None:
            limits.append(self.max_documents * document_chars)
        return min(limits)

    def documents(self, records: "Records") -> Iterator[str]:
        """Yields the documents, stripped, without the empty ones, up to the limits.

        A document longer than `MAX_DOCUMENT_CHARS` becomes several, halves of surrogate
        pairs become "?"; documents shorter than `data.join_chars` are joined with the
        next ones by a newline.

        Raises:
          UserError: see `texts`.
        """
        texts = _clean(self.texts(records), records)
        texts = _joined(texts, records.data.join_chars)
        return self.transform(_limited(texts, self))

    def texts(self, records: "Records") -> Iterator[str]:
        """Yields the documents as they are in the file.

        In `.txt` a document is what `data.txt_documents` says; in `.jsonl` and `.json`
        a line, in `.csv` and `.parquet` a row. Bytes that are not UTF-8 become U+FFFD,
        lines that are not JSON are skipped, and of a damaged file everything before the
        damage is read.

        Raises:
          UserError: a record does not have the field.
          SourceLost: the file, which may be intact, cannot be read to its end.
        """
        texts = FORMATS[file_format(self.path)](self, records)
        while True:
            try:
                text = next(texts, None)
            except DAMAGE as error:
                if getattr(error, "errno", None) is not None:  # a fault of the disk
                    raise SourceLost(
                        f"config.data.sources: {self.name} cannot be read ({error}); "
                        "the same command continues with what is finished"
                    ) from error
                records.problems[f"{self.path.name} is damaged: {error}"] += 1
                return
            if text is None:
                return
            yield text


class Records:
    """Takes the texts out of records, and counts what is broken in them.

    Attributes:
      data: the config.
      problems: {what was broken: how often}.
      keep: {field: values} of `data.keep`: records with other values are left out.
      left_out: {field: value} of the first record that was left out.
    """

    def __init__(self, data: DataConfig):
        """Parses `data.keep`."""
        self.data = data
        self.problems: collections.Counter[str] = collections.Counter()
        rules = [rule.split("=", 1) for rule in data.keep]
        self.keep = {name: frozenset(values.split("|")) for name, values in rules}
        self.left_out: dict[str, str] = {}

    def columns(self, existing: Sequence[str], where: str) -> list[str]:
        """Returns the columns of a table that are needed.

        Raises:
          UserError: one is missing.
        """
        fields = {
            self.data.text_field: "text_field",
            **dict.fromkeys(self.keep, "keep"),
        }
        needed = set()
        for name, key in fields.items():
            column = name if name in existing else name.split(".")[0]
            if column not in existing:
                raise _no_field(where, name, existing, key)
            needed.add(column)
        return sorted(needed)

    def text(self, record: Mapping[str, Any], where: str) -> str | None:
        """Returns a record's text, None if it has none or `data.keep` leaves it out.

        Raises:
          UserError: the record does not have the field.
        """
        seen = {name: field(record, name, "keep", where) for name in self.keep}
        for name, value in seen.items():
            # True is "true" in JSON.
            if not {str(value), json.dumps(value, default=str)} & self.keep[name]:
                self.problems["records left out by data.keep"] += 1
                self.left_out = self.left_out or {k: str(v) for k, v in seen.items()}
                return None
        text = field(record, self.data.text_field, "text_field", where)
        if text is None:
            self.problems["records without text"] += 1
        elif not isinstance(text, str):
            self.problems["records whose text is not a string"] += 1
            return None
        return text


def field(record: Mapping[str, Any], name: str, key: str, where: str) -> object:
    """Returns a field of a record; a dot leads into a record within it.

    Raises:
      UserError: the field is missing; `data.<key>` has to be changed.
    """
    value: Any = record
    for part in [name] if name in record else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            fields = sorted(value) if isinstance(value, Mapping) else [repr(value)]
            raise _no_field(where, name, fields, key)
        value = value[part]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _no_field(where: str, name: str, fields: Sequence[str], key: str) -> UserError:
    what = "text in the" if key == "text_field" else "such"
    return UserError(
        f"{where} has no {what} field {name!r}; it has {list(fields)}: use one of them "
        f"in --config.data.{key}"
    )


def file_format(path: PurePath) -> str:
    """Returns the suffix that says what a file is, without a compression's."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


@contextlib.contextmanager
def _lines(file: File) -> Iterator[io.TextIOWrapper]:
    unpack = COMPRESSIONS.get(file.path.suffix, lambda raw: raw)
    with (
        file.open() as raw,
        io.TextIOWrapper(unpack(raw), encoding="utf-8-sig", errors="replace") as text,
    ):
        yield text


def _txt(file: File, records: Records) -> Iterator[str]:
    if records.keep:
        raise _no_field(file.name, next(iter(records.keep)), [], "keep")
    rule = records.data.txt_documents
    waiting: list[str] = []
    size = 0
    with _lines(file) as lines:
        # Yields what it has when the file turns out to be damaged, too.
        try:
            while line := lines.readline(MAX_DOCUMENT_CHARS):
                blank = rule == "blank_line" and not line.strip()
                full = size + len(line) > MAX_DOCUMENT_CHARS
                if full and rule != "line":
                    records.problems["documents cut for their length"] += 1
                if waiting and (blank or full or rule == "line"):
                    yield "".join(waiting)
                    waiting, size = [], 0
                waiting.append(line)
                size += len(line)
        except DAMAGE:
            yield "".join(waiting)
            raise
    yield "".join(waiting)


def _jsonl(file: File, records: Records) -> Iterator[str]:
    problems = records.problems
    with _lines(file) as lines:
        for number in itertools.count(1):
            line = lines.readline(MAX_RECORD_CHARS)
            if not line:
                return
            if len(line) == MAX_RECORD_CHARS and not line.endswith("\n"):
                while (rest := lines.readline(MAX_RECORD_CHARS)) and rest[-1] != "\n":
                    pass
                problems["records that are too long"] += 1
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                problems["lines that are not JSON"] += 1
                continue
            if not isinstance(record, dict):
                problems["lines that are not objects"] += 1
                continue
            if (text := records.text(record, f"{file.name}:{number}")) is not None:
                yield text


def _csv(file: File, records: Records) -> Iterator[str]:
    csv.field_size_limit(MAX_RECORD_CHARS)
    with _lines(file) as lines:
        rows = _rows(csv.reader(lines), records)
        if not (names := next(rows, None)):
            return
        records.columns(names, file.name)
        for row in rows:
            record = dict.fromkeys(names) | dict(zip(names, row, strict=False))
            if (text := records.text(record, file.name)) is not None:
                yield text


def _rows(reader: Iterator[list[str]], records: Records) -> Iterator[list[str]]:
    """Yields the rows that are neither blank nor broken."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            records.problems["rows that are not CSV"] += 1
            continue
        if row is None:
            return
        if row:
            yield row


def _parquet(file: File, records: Records) -> Iterator[str]:
    # Without pre_buffer one row group is read at a time, not all of the file's.
    with file.open() as raw, parquet.ParquetFile(raw, pre_buffer=False) as table:
        field = records.data.text_field
        schema = table.schema_arrow
        types = dict(zip(schema.names, schema.types, strict=True))
        columns = records.columns(list(types), file.name)
        text_type = types.get(field)
        if text_type is not None and text_type not in TEXT_TYPES:
            raise _no_field(file.name, field, list(types), "text_field")
        for batch in table.iter_batches(BATCH_ROWS, columns=columns):
            if text_type is not None:
                column = batch.schema.get_field_index(field)
                # As bytes, for strings may hold what is not UTF-8.
                texts = batch.column(column).cast(pyarrow.large_binary())
                batch = batch.set_column(column, field, texts)
            for record in batch.to_pylist():
                if (text := records.text(record, file.name)) is not None:
                    yield text


FORMATS = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _clean(texts: Iterator[str], records: Records) -> Iterator[str]:
    """Yields documents without surrounding whitespace, as valid UTF-8, not too long."""
    empty = True
    for text in texts:
        starts = range(0, len(text), MAX_DOCUMENT_CHARS)
        if len(starts) > 1:
            records.problems["documents cut for their length"] += len(starts) - 1
        for start in starts:
            piece = text[start : start + MAX_DOCUMENT_CHARS].strip()
            piece = piece.encode(errors="replace").decode()
            if "\ufffd" in piece:
                records.problems["documents with bytes that are not UTF-8"] += 1
            if piece:
                empty = False
                yield piece
    if empty:
        records.problems["files without text"] += 1


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


def _limited(texts: Iterator[str], file: File) -> Iterator[str]:
    chars = 0
    for text in itertools.islice(texts, file.max_documents):
        if file.max_chars is not None and chars >= file.max_chars:
            return
        chars += len(text)
        yield text

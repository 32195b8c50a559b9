"""From one file to its texts: formats, compressions, and what may be broken in them."""

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

from cramjax.data.fingerprints import Fingerprints
from cramjax.errors import SourceLost, UserError
from cramjax.schema import DataConfig

COMPRESSIONS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": lambda file: pyarrow.input_stream(file, compression="zstd"),
}
# What a decompressor says of a file that was cut or changed.
DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error, pyarrow.ArrowInvalid)
# Longer documents are cut, or one file without a blank line could fill the memory.
MAX_DOCUMENT_CHARS = 1 << 22
MAX_RECORD_CHARS = 1 << 26  # a line of .jsonl or field of .csv; longer are left out
BATCH_ROWS = 64  # of .parquet, read at once

Problems = collections.Counter[str]  # {what was broken: how often}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How sources are read; see `schema.DataConfig`.

    Attributes:
      text_field: of a record.
      txt_documents: what ends a document in .txt.
      keep: {field: values}: records with other values are left out. A dot goes into a
        record within the record.
      join_chars: shorter documents are joined with the next ones.
    """

    text_field: str = "text"
    txt_documents: str = "blank_line"
    keep: tuple[tuple[str, frozenset[str]], ...] = ()
    join_chars: int = 0

    @classmethod
    def of(cls, config: DataConfig) -> "Reading":
        """Returns what the config says."""
        rules = (rule.split("=", 1) for rule in config.keep)
        keep = tuple((name, frozenset(values.split("|"))) for name, values in rules)
        return cls(config.text_field, config.txt_documents, keep, config.join_chars)

    def columns(self, there: Sequence[str], where: str) -> list[str]:
        """Returns the columns of a table that are needed.

        Raises:
          UserError: one is not there.
        """
        needed = {}
        for name, key in (
            (self.text_field, "text_field"),
            *((name, "keep") for name, _ in self.keep),
        ):
            column = name if name in there else name.split(".")[0]
            if column not in there:
                raise _no_field(where, name, there, key)
            needed[column] = key
        return sorted(needed)

    def text(
        self, record: Mapping[str, Any], where: str, problems: Problems
    ) -> str | None:
        """Returns a record's text, None if it has none or is left out by `keep`.

        Raises:
          UserError: it has no such field.
        """
        for name, values in self.keep:
            value = self.field(record, name, "keep", where)
            value = value.decode(errors="replace") if type(value) is bytes else value
            as_json = json.dumps(value) if type(value) is bool else str(value)
            if not {str(value), as_json} & values:
                problems["records left out by data.keep"] += 1
                return None
        text = self.field(record, self.text_field, "text_field", where)
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        if text is None:
            problems["records without text"] += 1
        elif not isinstance(text, str):
            problems["records whose text is not a string"] += 1
            return None
        return text

    def field(
        self, record: Mapping[str, Any], name: str, key: str, where: str
    ) -> object:
        """Returns a field of a record.

        Raises:
          UserError: there is none, for `data.<key>` to be changed.
        """
        value: Any = record
        for part in [name] if name in record else name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                fields = sorted(value) if isinstance(value, Mapping) else [repr(value)]
                raise _no_field(where, name, fields, key)
            value = value[part]
        return value


@dataclasses.dataclass(frozen=True)
class File:
    """A local file.

    Attributes:
      path: whose suffixes say what is in it.
    """

    path: PurePath

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return Path(self.path).stat().st_size

    def facts(self, known: Fingerprints) -> dict[str, Any]:
        """Returns {"path", "bytes", "sha256"}."""
        return known.file(Path(self.path))

    def open(self) -> BinaryIO:
        """Opens it for reading, at any place."""
        return Path(self.path).open("rb")

    def texts(self, reading: Reading, problems: Problems) -> Iterator[str]:
        """Yields its documents as they are, see `file_texts`."""
        return file_texts(self, reading, problems)


def _no_field(where: str, name: str, fields: Sequence[str], key: str) -> UserError:
    """Returns an error that names the fields there are."""
    what = "text in the" if key == "text_field" else "such"
    return UserError(
        f"{where} has no {what} field {name!r}; it has {list(fields)}: use one of them "
        f"in --config.data.{key}"
    )


def file_format(path: PurePath) -> str:
    """Returns the suffix that says what a file is, without a compression's."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def file_texts(file: File, reading: Reading, problems: Problems) -> Iterator[str]:
    """Yields a file's documents as they are.

    In `.txt` a document is what `reading.txt_documents` says; in `.jsonl` and `.json` a
    line, in `.csv` and `.parquet` a row. Bytes that are not UTF-8 become U+FFFD, lines
    that are not JSON are skipped, of a file that is damaged all before the damage is
    read.

    Raises:
      UserError: a record has no such field.
      SourceLost: the file, whole as it may be, cannot be read to its end.
    """
    texts = FORMATS[file_format(file.path)](file, reading, problems)
    while True:
        try:
            text = next(texts, None)
        except DAMAGE as error:
            if getattr(error, "errno", None) is not None:  # the disk's, not the file's
                raise SourceLost(
                    f"config.data.sources: {file.name} cannot be read ({error}); the "
                    "same command goes on with what is finished"
                ) from error
            problems[f"{file.path.name} is damaged: {error}"] += 1
            return
        if text is None:
            return
        yield text


@contextlib.contextmanager
def _lines(file: File) -> Iterator[io.TextIOWrapper]:
    unpack = COMPRESSIONS.get(file.path.suffix, lambda raw: raw)
    with (
        file.open() as raw,
        io.TextIOWrapper(unpack(raw), encoding="utf-8-sig", errors="replace") as text,
    ):
        yield text


def _txt(file: File, reading: Reading, problems: Problems) -> Iterator[str]:
    if reading.keep:
        raise _no_field(file.name, reading.keep[0][0], [], "keep")
    waiting: list[str] = []
    size = 0
    with _lines(file) as lines:
        # Yields what it has when the file turns out to be damaged, too.
        try:
            while line := lines.readline(MAX_DOCUMENT_CHARS):
                blank = reading.txt_documents == "blank_line" and not line.strip()
                full = size + len(line) > MAX_DOCUMENT_CHARS
                if full and reading.txt_documents != "line":
                    problems["documents cut for their length"] += 1
                if waiting and (blank or full or reading.txt_documents == "line"):
                    yield "".join(waiting)
                    waiting, size = [], 0
                waiting.append(line)
                size += len(line)
        except DAMAGE:
            yield "".join(waiting)
            raise
    yield "".join(waiting)


def _jsonl(file: File, reading: Reading, problems: Problems) -> Iterator[str]:
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
            where = f"{file.name}:{number}"
            if not isinstance(record, dict):
                problems["lines that are not objects"] += 1
                continue
            if (text := reading.text(record, where, problems)) is not None:
                yield text


def _csv(file: File, reading: Reading, problems: Problems) -> Iterator[str]:
    csv.field_size_limit(MAX_RECORD_CHARS)
    with _lines(file) as lines:
        rows = csv.reader(lines)
        names = _next_row(rows, problems) or []
        if not names:
            return
        reading.columns(names, file.name)
        while (row := _next_row(rows, problems)) is not None:
            if not row:  # a blank line
                continue
            record = dict.fromkeys(names) | dict(zip(names, row, strict=False))
            if (text := reading.text(record, file.name, problems)) is not None:
                yield text


def _next_row(rows: Iterator[list[str]], problems: Problems) -> list[str] | None:
    while True:
        try:
            return next(rows, None)
        except csv.Error:
            problems["rows that are not CSV"] += 1


def _parquet(file: File, reading: Reading, problems: Problems) -> Iterator[str]:
    # Without pre_buffer one row group is read at a time, not all of the file's.
    with file.open() as raw, parquet.ParquetFile(raw, pre_buffer=False) as table:
        schema = table.schema_arrow
        types = dict(zip(schema.names, schema.types, strict=True))
        columns = reading.columns(list(types), file.name)
        text_type = types.get(reading.text_field)
        if text_type is not None and not _is_text(text_type):
            raise _no_field(file.name, reading.text_field, list(types), "text_field")
        for batch in table.iter_batches(BATCH_ROWS, columns=columns):
            if text_type is not None:
                column = batch.schema.get_field_index(reading.text_field)
                # As bytes, for strings may hold what is not UTF-8.
                texts = batch.column(column).cast(pyarrow.large_binary())
                batch = batch.set_column(column, reading.text_field, texts)
            for record in batch.to_pylist():
                if (text := reading.text(record, file.name, problems)) is not None:
                    yield text


def _is_text(kind: pyarrow.DataType) -> bool:
    tests = ("is_string", "is_large_string", "is_binary", "is_large_binary")
    return any(getattr(pyarrow.types, test)(kind) for test in tests)


FORMATS = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}

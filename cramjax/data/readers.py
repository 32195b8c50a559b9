"""From a file to its documents: formats, compressions, and what may be broken in them.

Broken records are counted, and reading continues after them.
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
from typing import Any, BinaryIO, ClassVar

import pyarrow
from pyarrow import parquet

from cramjax.config import DataConfig
from cramjax.data import remote
from cramjax.errors import SourceLost, UserError

COMPRESSIONS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": lambda file: pyarrow.input_stream(file, compression="zstd"),
}
# Characters in a byte of a compressed file: of C4, The Pile and Wikipedia, roughly.
EXPANSION = {".gz": 2.5, ".zst": 3, ".xz": 4, ".bz2": 4, ".parquet": 1.7}
DOCUMENT_CHARS = 5800  # of The Pile, on average, for estimates
# Longer documents are cut, or one file without a blank line could fill the memory.
MAX_DOCUMENT_CHARS = 1 << 22
MAX_RECORD_CHARS = 1 << 26  # a line of .jsonl or field of .csv; longer are left out
BATCH_ROWS = 64  # of .parquet, read at once

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """A file, and how much of it is taken.

    Attributes:
      path: its suffixes say what is in it.
      url: of a remote file; "" of a local one.
      size: in bytes.
      digest: of a remote file, what the server knows of its content; "" of a local one.
      source: the index in `config.data.sources` of the source that named it.
      weight: the fraction of the corpus's text that it is expected to give.
      max_chars: no document begins after so many characters; None for no limit.
      max_documents: None for no limit.
      transform: of the stream of its documents, for example to drop duplicates. It
        comes after everything else.
    """

    # What reading a truncated or changed file raises.
    damage: ClassVar[tuple[type[Exception], ...]] = (
        *(EOFError, OSError, lzma.LZMAError, zlib.error),
        *(pyarrow.ArrowException, UnicodeDecodeError),
    )
    path: PurePath
    url: str = ""
    size: int = 0
    digest: str = ""
    source: int = 0
    weight: float = 1.0
    max_chars: int | None = None
    max_documents: int | None = None
    transform: Callable[[Iterator[str]], Iterator[str]] = iter

    @property
    def name(self) -> str:
        """The URL, or the path of a local file."""
        return self.url or str(self.path)

    def expected_chars(self, document_chars: float) -> float:
        """Returns about how many characters are taken, given those of a document."""
        limits = [self.size * EXPANSION.get(self.path.suffix, 1)]
        if self.max_chars is not None:
            limits.append(self.max_chars)
        if self.max_documents is not None:
            limits.append(self.max_documents * document_chars)
        return min(limits)

    def open(self) -> BinaryIO:
        """Opens the file for reading, at any position."""
        if self.url:
            return remote.open_url(self.url, self.size)
        return Path(self.path).open("rb")

    def records(self, context: "ReadContext") -> Iterator[Record | str]:
        """Yields the file's records, or the texts of a file without records."""
        return FORMATS[file_format(self.path)](self, context)

    def raw_documents(self, context: "ReadContext") -> Iterator[str]:
        """Yields the documents as they are in the file.

        Bytes that are not UTF-8 become U+FFFD. Of a damaged file everything before the
        damage is read.

        Raises:
          UserError: a record does not have the field.
          SourceLost: the file, which may be intact, cannot be read to its end.
        """
        records = self.records(context)
        while True:
            try:
                entry = next(records, None)
            except self.damage as error:
                if getattr(error, "errno", None) is not None:  # a fault of the disk
                    raise SourceLost(
                        f"config.data.sources: {self.name} cannot be read ({error}); "
                        "the same command continues with what is finished"
                    ) from error
                what = str(error).partition("\n")[0]
                context.problems[f"{self.path.name} is damaged: {what}"] += 1
                return
            if entry is None:
                return
            text = entry if isinstance(entry, str) else context.text(entry, self.name)
            if text is not None:
                yield text

    def documents(self, context: "ReadContext") -> Iterator[str]:
        """Yields the documents, stripped, without the empty ones, up to the limits.

        A document longer than `MAX_DOCUMENT_CHARS` becomes several, halves of surrogate
        pairs become "?"; documents shorter than `data.join_chars` are joined with the
        next ones by a newline.

        Raises:
          UserError: see `raw_documents`.
        """
        texts = _clean(self.raw_documents(context), context)
        texts = _joined(texts, context.data.join_chars)
        return self.transform(_limited(texts, self))


class ReadContext:
    """Settings and problem counts of one reading.

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
        self.left_out: dict[str, object] = {}

    def text(self, record: Record, where: str) -> str | None:
        """Returns a record's text, None if it has none or `data.keep` leaves it out.

        Raises:
          UserError: the record does not have a field.
        """
        seen = {name: field(record, name, "keep", where) for name in self.keep}
        for name, value in seen.items():
            # True is "true" in JSON.
            if not {str(value), json.dumps(value, default=str)} & self.keep[name]:
                self.problems["records left out by data.keep"] += 1
                self.left_out = self.left_out or seen
                return None
        text = field(record, self.data.text_field, "text_field", where)
        if isinstance(text, str):
            return text
        what = "without text" if text is None else "whose text is not a string"
        self.problems[f"records {what}"] += 1
        return None


def field(record: Record, name: str, key: str, where: str) -> object:
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


def _txt(file: File, context: ReadContext) -> Iterator[str]:
    if context.keep:
        raise _no_field(file.name, next(iter(context.keep)), [], "keep")
    rule = context.data.txt_documents
    waiting: list[str] = []
    size = 0
    with _lines(file) as lines:
        # Yields what it has when the file turns out to be damaged, too.
        try:
            while line := lines.readline(MAX_DOCUMENT_CHARS):
                blank = rule == "blank_line" and not line.strip()
                full = size + len(line) > MAX_DOCUMENT_CHARS
                if full and rule != "line":
                    context.problems["documents cut for their length"] += 1
                if waiting and (blank or full or rule == "line"):
                    yield "".join(waiting)
                    waiting, size = [], 0
                waiting.append(line)
                size += len(line)
        except file.damage:
            yield "".join(waiting)
            raise
    yield "".join(waiting)


def _jsonl(file: File, context: ReadContext) -> Iterator[Record]:
    with _lines(file) as lines:
        # A longer line is cut, and its parts are not JSON.
        while line := lines.readline(MAX_RECORD_CHARS):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                yield record
            else:
                context.problems["lines that are not JSON objects"] += 1


def _csv(file: File, context: ReadContext) -> Iterator[Record]:
    csv.field_size_limit(MAX_RECORD_CHARS)
    with _lines(file) as lines:
        rows = csv.DictReader(lines, restkey="")
        while True:
            try:
                row = next(rows, None)
            except csv.Error:
                context.problems["rows that are not CSV"] += 1
                continue
            if row is None:
                return
            yield row


def _parquet(file: File, context: ReadContext) -> Iterator[Record]:
    # Without pre_buffer one row group is read at a time, not all of the file's.
    with file.open() as raw, parquet.ParquetFile(raw, pre_buffer=False) as table:
        names = table.schema_arrow.names
        fields = [context.data.text_field, *context.keep]
        columns = {name if name in names else name.split(".")[0] for name in fields}
        if not columns <= {*names}:
            columns = names  # for the error, which names them all
        for batch in table.iter_batches(BATCH_ROWS, columns=sorted(columns)):
            yield from batch.to_pylist()


FORMATS: dict[str, Callable[[File, ReadContext], Iterator[Record | str]]] = {
    ".txt": _txt,  # a document is what `data.txt_documents` says
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _clean(texts: Iterator[str], context: ReadContext) -> Iterator[str]:
    """Yields documents without surrounding whitespace, as valid UTF-8, not too long."""
    empty = True
    for text in texts:
        starts = range(0, len(text), MAX_DOCUMENT_CHARS)
        if len(starts) > 1:
            context.problems["documents cut for their length"] += len(starts) - 1
        for start in starts:
            piece = text[start : start + MAX_DOCUMENT_CHARS].strip()
            piece = piece.encode(errors="replace").decode()
            if "\ufffd" in piece:
                context.problems["documents with bytes that are not UTF-8"] += 1
            if piece:
                empty = False
                yield piece
    if empty:
        context.problems["files without text"] += 1


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

"""Task files to rows of text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cramjax.errors import UserError
from cramjax.glue.tasks import Form


class Incomplete(UserError):
    """A task's training set or its dev sets are not there.

    Attributes:
      key: of the config, names the folder where they would be.
      note: a sentence about it, for where other tasks are scored.
    """

    def __init__(self, key: str, message: str, note: str = ""):
        """Keeps both; the note is the message if it is left out."""
        super().__init__(message)
        self.key = key
        self.note = note or message


class Row(NamedTuple):
    """A row: its line in the file (from 1), its texts, and the label as it is there."""

    line: int
    texts: tuple[str, ...]
    label: str | None


class Table(NamedTuple):
    """A split as it was found: where, its rows, and how many were left out."""

    where: str
    rows: list[Row]
    left_out: int = 0


def read(path: Path, form: Form) -> Table:
    """Reads a `.tsv`, in which quotes are plain characters, or a `.jsonl`.

    Raises:
      UserError: what cannot be read, with its line.
    """
    table = READERS[path.suffix](path, form)
    if not table.rows:
        raise UserError(f"{path} has no rows")
    return table


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line numbers, from 1, and lines without their ends."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")  # MRPC's dev set has a byte-order mark
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line} is not UTF-8: {error.reason}") from error
    # Not splitlines(), nor the csv module: texts may have other line breaks in them.
    lines = text.split("\n")
    while lines and not lines[-1].strip(" \r"):  # editors leave blank lines at the end
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def _read_tsv(path: Path, form: Form) -> Table:
    lines = ((number, line.split("\t")) for number, line in _lines(path))
    columns = [*form.texts, *([] if form.label is None else [form.label])]
    width = form.width
    if not width:
        names = next(lines, (1, columns))[1]
        for name in columns:
            if name not in names:
                raise UserError(
                    f"{path} has no column {name!r}; it has {names}{form.way_out(name)}"
                )
        width = len(names)
        columns = [names.index(name) for name in columns]
    rows, left_out = [], 0
    for number, values in lines:
        if form.skip_short and len(values) < width:
            left_out += 1
            continue
        if len(values) != width:
            found = "is blank" if values == [""] else f"has {len(values)} columns"
            raise UserError(f"{path}:{number} {found}, not {width} columns")
        picked = [values[column] for column in columns]
        label = None if form.label is None else picked.pop()
        rows.append(Row(number, tuple(picked), label))
    return Table(str(path), rows, left_out)


def _read_jsonl(path: Path, form: Form) -> Table:
    rows = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON: {error}") from error
        try:
            records = list(form.expand(record)) if form.expand else [record]
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} lacks a part: {error}") from error
        for record in records:
            texts = tuple(_field(record, name, where, form) for name in form.texts)
            label = form.label and _field(record, form.label, where, form)
            rows.append(Row(number, texts, label))
    return Table(str(path), rows)


def _field(record: Any, name: str, where: str, form: Form) -> str:
    """Returns a field as text; a dot in the name leads into an object."""
    value = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{where} has no {name!r}{form.way_out(name)}")
        value = value[part]
    if not isinstance(value, (str, bool, int, float)):
        raise UserError(
            f"{where} has no text or number in {name!r}{form.way_out(name)}"
        )
    return value if isinstance(value, str) else json.dumps(value)


READERS = {".tsv": _read_tsv, ".jsonl": _read_jsonl}

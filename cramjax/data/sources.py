"""Where text comes from: files, one document at a time."""

import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TextIO

from cramjax.errors import UserError
from cramjax.schema import require

EMBEDDED = {"embedded:books": "demo/books.txt.xz"}
FORMATS = (".txt", ".jsonl")
COMPRESSIONS = {".gz": gzip.open, ".xz": lzma.open}


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
            if _format(Path(match)) not in FORMATS:
                raise UserError(
                    f"config.data.sources: {match} is neither .txt nor .jsonl (plain, "
                    ".gz or .xz); convert or rename it"
                )
        paths += [Path(m).resolve() for m in matches]
    return paths


def read_documents(path: Path) -> Iterator[str]:
    """Yields a file's documents, stripped, without the empty ones.

    In `.txt` a blank line separates documents; in `.jsonl` a line is one, in the field
    "text". Bytes that are not UTF-8 become U+FFFD, halves of surrogate pairs "?".

    Raises:
      UserError: a JSON line that cannot be read, or one without the field.
    """
    opener = COMPRESSIONS.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        reader = _paragraphs if _format(path) == ".txt" else _json_texts
        try:
            yield from reader(file, path)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is damaged ({error}): fetch it again") from error


def _format(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix


def _paragraphs(file: TextIO, path: Path) -> Iterator[str]:
    del path
    lines: list[str] = []
    for line in file:
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines).strip()
            lines = []
    if lines:
        yield "".join(lines).strip()


def _json_texts(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number} is not JSON ({error.msg})") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            fields = sorted(record) if isinstance(record, dict) else type(record)
            raise UserError(f"{path}:{number} has no field 'text'; it has {fields}")
        if text := record["text"].strip():
            yield text.encode(errors="replace").decode()

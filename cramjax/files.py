"""Atomic writes, and JSON files."""

import contextlib
import json
import os
import secrets
import types
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cramjax.errors import UserError

CHECKSUM = "checksum"  # of a record's other values


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside the path, and renames it at the end of the block.

    A kill leaves the old file or the new one. Two processes may write the same path,
    also on two machines.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # an error of `write`
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file atomically."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically, in UTF-8."""
    write_bytes(path, text.encode())


def to_be_written(flag: str, name: str) -> Path | None:
    """Returns the path of a file that a flag names, None for "".

    Raises:
      UserError: it cannot be written, which is checked before the work.
    """
    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"--{flag}={name} is a folder: pass a file")
    if not path.parent.is_dir():
        raise UserError(f"--{flag}={name}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--{flag}={name}: {path.parent} cannot be written")
    return path


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Reads a JSON object, without the checksum of a record.

    Raises:
      UserError: it is missing or damaged; the message ends in `hint`.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): {hint}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: {hint}")
    if value.pop(CHECKSUM, expected := checksum(value)) != expected:
        edited = f"if you edited it, delete the line of its {CHECKSUM}"
        raise UserError(f"{path} is damaged ({edited}): {hint}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, which `read_json` compares."""
    write_json(path, {**values, CHECKSUM: checksum(values)})


def checksum(values: Mapping[str, Any]) -> int:
    """Returns that of a JSON object without "name" (a corpus's folder)."""
    content = {k: v for k, v in values.items() if k not in (CHECKSUM, "name")}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def save_array(path: Path, array: Any) -> None:
    """Writes a NumPy array atomically."""
    import numpy as np  # slow to import

    with replacing(path) as file:
        # To a `file` NumPy writes by itself, and its errors do not say what failed.
        np.save(types.SimpleNamespace(write=file.write), array)

"""metrics.jsonl: one line of numbers every so many steps, never rewritten but at a cut.

A line is a measurement (`step`, `loss`, `elapsed_s`, ...), or an event if it has the
key `event`.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.errors import is_disk_full


class MetricsLog:
    """Appends lines, each at once; a context manager.

    What a full disk has no room for is kept, and written when there is some.
    """

    def __init__(self, path: Path):
        """Opens the file for appending, after its last whole line.

        A kill may have cut the line that was being written.
        """
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._kept = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, **values: Any) -> None:
        """Appends one line, with the time of day in seconds since 1970."""
        self._kept += (json.dumps({"time": time.time(), **values}) + "\n").encode()
        try:
            while self._kept:
                self._kept = self._kept[self._file.write(self._kept) :]
        except OSError as error:
            if not is_disk_full(error):
                raise

    def cut(self, after: int, **event: Any) -> None:
        """Drops what was measured after a step, which will be measured again.

        The event that says so comes in the same write: a kill leaves both or none.
        """
        known = _parsed(self._path.read_bytes() + self._kept)
        lines = [line for line in known if line["step"] <= after]
        lines.append({"time": time.time(), **event})
        self._file.close()
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file, self._kept = self._path.open("ab", buffering=0), b""


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines; the last one is left out if a kill cut it off."""
    return _parsed(path.read_bytes() if path.exists() else b"")


def _parsed(content: bytes) -> list[dict[str, Any]]:
    lines, parsed = content.decode().splitlines(), []
    for number, line in enumerate(lines):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
    return parsed

"""metrics.jsonl: one line of numbers every so many steps, never rewritten but at a cut.

A line is a measurement (`step`, `loss`, `elapsed_s`, ...), or an event if it has the
key `event`.
"""

import json
import time
from pathlib import Path
from typing import Any

from cramjax import files


class MetricsLog:
    """Appends lines, each flushed; a context manager."""

    def __init__(self, path: Path):
        """Opens the file for appending."""
        self._path = path
        self._file = path.open("a")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, **values: Any) -> None:
        """Appends one line, with the time of day in seconds since 1970."""
        print(json.dumps({"time": time.time(), **values}), file=self._file, flush=True)

    def cut(self, after: int, **event: Any) -> None:
        """Drops what was measured after a step, which will be measured again.

        The event that says so comes in the same write: a kill leaves both or none.
        """
        lines = [line for line in read(self._path) if line["step"] <= after]
        lines.append({"time": time.time(), **event})
        self._file.close()
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = self._path.open("a")


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines; the last one is left out if a kill cut it off."""
    lines = path.read_text().splitlines() if path.exists() else []
    parsed = []
    for number, line in enumerate(lines):
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
    return parsed

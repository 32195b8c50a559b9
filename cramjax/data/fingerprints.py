"""What tells one source from another: its content."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.errors import UserError

CACHE = "fingerprints.json"  # in data.dir


class Fingerprints:
    """Hashes of files and what servers have said, remembered in `data.dir`.

    A file's content is read once: as long as its size and time of change stay the same,
    the hash that is remembered is taken. What a server says of its files, such as the
    newest commit of a data set, is remembered for good; delete the file to ask again.
    """

    def __init__(self, data_dir: Path):
        """Reads what is remembered."""
        self._path = data_dir / CACHE
        try:
            self._known = dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):  # a cache: made again
            self._known = {}
        self._changed = False

    def file(self, path: Path) -> dict[str, Any]:
        """Returns {"path", "bytes", "sha256"}.

        Raises:
          UserError: the file cannot be read.
        """
        entry = self._known.get(str(path))
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            if entry is None or entry[:2] != stamp:
                with path.open("rb") as file:
                    entry = [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
                self._known[str(path)], self._changed = entry, True
        except OSError as error:
            raise UserError(
                f"config.data.sources: {path} cannot be read ({error.strerror})"
            ) from error
        return {"path": str(path), "bytes": entry[0], "sha256": entry[2]}

    def get(self, name: str) -> Any | None:
        """Returns what is remembered of a source, None if nothing is."""
        return self._known.get(name)

    def put(self, name: str, facts: Any) -> None:
        """Remembers facts of a source, of types that JSON has."""
        self._known[name], self._changed = facts, True

    def save(self) -> None:
        """Writes what has changed.

        Raises:
          UserError: `data.dir` cannot be written.
        """
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, self._known)
        except OSError as error:
            raise UserError(
                f"config.data.dir is {str(self._path.parent)!r}: cannot be written "
                f"({error})"
            ) from error
        self._changed = False

"""What distinguishes one source from another: its content."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.errors import UserError

CACHE = "fingerprints.json"  # in data.dir


class Fingerprints:
    """Hashes of files and answers of servers, remembered in `data.dir`.

    A file's content is read once: as long as its size and modification time stay the
    same, the remembered hash is returned. What a server says of its files, such as the
    newest commit of a data set, is remembered for good; delete the file to ask again.
    """

    def __init__(self, data_dir: str):
        """Reads what is remembered."""
        self._path = Path(data_dir).expanduser() / CACHE
        try:
            self._known = dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):  # a cache: made again
            self._known = {}
        self._changed = False

    def file(self, path: Path) -> dict[str, Any]:
        """Returns {"path", "bytes", "sha256"}, for which it may read the whole file.

        Raises:
          UserError: the file cannot be read.
        """
        try:
            if not self.remembers(path):
                stat = path.stat()
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.put(str(path), [stat.st_size, stat.st_mtime_ns, sha256])
        except OSError as error:
            raise UserError(
                f"config.data.sources: {path} cannot be read ({error.strerror})"
            ) from error
        size, _, sha256 = self._known[str(path)]
        return {"path": str(path), "bytes": size, "sha256": sha256}

    def remembers(self, path: Path) -> bool:
        """Returns whether the file has not changed since it was hashed."""
        stat, entry = path.stat(), self._known.get(str(path))
        return entry is not None and entry[:2] == [stat.st_size, stat.st_mtime_ns]

    def get(self, name: str) -> Any | None:
        """Returns what is remembered of a source, None if nothing is."""
        return self._known.get(name)

    def put(self, name: str, facts: Any) -> None:
        """Remembers facts about a source, as JSON values."""
        self._known[name], self._changed = facts, True

    def save(self) -> None:
        """Writes what has changed."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, self._known)
            self._changed = False

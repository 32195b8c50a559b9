"""What distinguishes one source from another: its content."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.errors import UserError

CACHE = "fingerprints.json"  # in data.dir
PARTS = "fingerprints-*.json"  # of the tasks of a build, until it is finished


class Fingerprints:
    """Hashes of files and answers of servers, remembered in `data.dir`.

    A file's content is read once: as long as its size and modification time stay the
    same, the remembered hash is returned. A server's answer about its files, such as
    the newest commit of a data set, is remembered for good; delete the file to ask
    again.

    Attributes:
      entries: {path or URL: what is remembered of it, as JSON values}.
    """

    def __init__(self, data_dir: str):
        """Reads what is remembered."""
        self._path = Path(data_dir).expanduser() / CACHE
        self._saved = _read(self._path)
        self.entries = dict(self._saved)
        for part in self._path.parent.glob(PARTS):
            self.entries |= _read(part)

    def sha256(self, path: Path) -> str:
        """Returns the hash of a file, for which it may read the whole file.

        Raises:
          UserError: the file cannot be read.
        """
        try:
            if not self.covers(path):
                version = _version(path)
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.entries[str(path)] = [*version, sha256]
        except OSError as error:
            raise UserError(
                f"config.data.sources: {path} cannot be read ({error.strerror})"
            ) from error
        return self.entries[str(path)][2]

    def covers(self, path: Path) -> bool:
        """Returns whether the hash of a file is remembered; raises an `OSError`."""
        return self.entries.get(str(path), [])[:2] == _version(path)

    def save(self) -> None:
        """Writes what has changed, and what the tasks of a build have added."""
        if self.entries != self._saved:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, self.entries)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):  # a cache: made again
        return {}


def _version(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]

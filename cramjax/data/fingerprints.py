"""What distinguishes one source from another: its content."""

import hashlib
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.errors import UserError

CACHE = "fingerprints.json"  # in data.dir


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
        try:
            self.entries: dict[str, Any] = files.read_json(self._path, "")
        except UserError:  # a cache: made again
            self.entries = {}
        self._saved = dict(self.entries)

    def knows(self, path: Path) -> bool:
        """Returns whether the hash of a file, as it is now, is remembered."""
        stat = path.stat()
        return self.entries.get(str(path), [])[:2] == [stat.st_size, stat.st_mtime_ns]

    def sha256(self, path: Path) -> str:
        """Returns the hash of a file, for which it may read the whole file.

        Raises:
          UserError: the file cannot be read.
        """
        try:
            if not self.knows(path):
                stat = path.stat()  # of before it is read
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.entries[str(path)] = [stat.st_size, stat.st_mtime_ns, sha256]
        except OSError as error:
            raise UserError(
                f"config.data.sources: {path} cannot be read ({error.strerror})"
            ) from error
        return self.entries[str(path)][2]

    def save(self) -> None:
        """Writes what has changed."""
        if self.entries != self._saved:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_record(self._path, self.entries)

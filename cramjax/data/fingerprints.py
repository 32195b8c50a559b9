"""What tells one source file from another: its content."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.errors import UserError

CACHE = "fingerprints.json"  # in data.dir


def fingerprints(paths: Sequence[Path], data_dir: Path) -> list[dict[str, Any]]:
    """Returns {"path", "bytes", "sha256"} of every file.

    Content is read once: as long as a file's size and time of change stay the same, the
    hash that `data_dir` remembers is taken.

    Raises:
      UserError: a file cannot be read, or `data_dir` cannot be written.
    """
    cache_path = data_dir / CACHE
    try:
        known = json.loads(cache_path.read_text())
    except (OSError, ValueError):  # a cache: what cannot be read is made again
        known = {}
    found, changed = [], False
    for path in paths:
        entry = known.get(str(path))
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            if entry is None or entry[:2] != stamp:
                with path.open("rb") as file:
                    entry = [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
                known[str(path)], changed = entry, True
        except OSError as error:
            raise UserError(
                f"config.data.sources: {path} cannot be read ({error.strerror})"
            ) from error
        found.append({"path": str(path), "bytes": entry[0], "sha256": entry[2]})
    if changed:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            files.write_json(cache_path, known)
        except OSError as error:
            raise UserError(
                f"config.data.dir is {str(data_dir)!r}: cannot be written ({error})"
            ) from error
    return found

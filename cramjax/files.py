"""Files that are there whole or not at all."""

import json
from pathlib import Path
from typing import Any

from cramjax.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes beside the path, then renames: a kill leaves the old file or the new."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: it is missing or damaged; the message ends in `way_out`.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {way_out}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: {way_out}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")

"""Files that are there whole or not at all."""

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes beside the path, then renames: a kill leaves the old file or the new."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")

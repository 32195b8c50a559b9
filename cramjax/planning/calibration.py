"""What cards were measured to do over what was estimated, for the next estimate."""

import json
from pathlib import Path
from typing import Any

from cramjax import files

# {card: {"factor", "micro_batches": {...}}}; scripts/check_gpu.py adds to it.
PATH = Path(__file__).with_name("calibration.json")


def factor(card: str) -> float | None:
    """Returns measured over estimated tokens/s of a card; None if none was measured."""
    return json.loads(PATH.read_text()).get(card, {}).get("factor")


def write(card: str, entry: dict[str, Any], path: Path) -> None:
    """Sets a card's entry, which has a "factor"; the others stay."""
    known = json.loads(path.read_text()) if path.exists() else {}
    files.write_json(path, known | {card: entry})

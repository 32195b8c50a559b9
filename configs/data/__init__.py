"""The texts of the paper's Table 7 and a newer one, for any card.

    python -m cramjax.main --config=configs/data/c4.py:a6000 --workdir=runs/c4

The word behind the colon is a file in `configs/`, where the rest comes from; without
one it is `a4000`. Names on the Hugging Face hub were looked up, not tried.
"""

import importlib
from pathlib import Path

from ml_collections import config_dict

from cramjax.errors import UserError


def on_card(card: str) -> config_dict.ConfigDict:
    """Returns the config of `configs/<card>.py`."""
    files = Path(__file__).parents[1].glob("[a-z]*.py")
    cards = sorted(path.stem for path in files)
    if card not in cards:
        raise UserError(f"no configs/{card}.py; there are {', '.join(cards)}")
    return importlib.import_module(f"configs.{card}").get_config()

"""The texts of the paper's Table 7 and a newer one, for any card.

    python -m cramjax.main --config=configs/data/c4.py:a6000 --workdir=runs/c4

The word behind the colon is a file in `configs/`, where the rest comes from; without
one it is `a4000`. Names on the Hugging Face hub were looked up, not tried.
"""

import importlib
import importlib.util

from ml_collections import config_dict


def on_card(card: str) -> config_dict.ConfigDict:
    """Returns the config of `configs/<card>.py`."""
    name = f"configs.{card}"
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"no configs/{card}.py; name a card's file, a4000 say")
    return importlib.import_module(name).get_config()

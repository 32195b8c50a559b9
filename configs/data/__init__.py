"""The texts of the paper's Table 7 and a newer one, for any card.

    python -m cramjax.main --config=configs/data/c4.py:a6000

The word after the colon is a file in `configs/`, where the rest comes from; without
one it is `a4000`. URLs were looked up, not tried.
"""

import importlib
from pathlib import Path

from ml_collections import config_dict

from cramjax.errors import UserError


def on_card(card: str) -> config_dict.ConfigDict:
    """Returns the config of `configs/<card>.py` without its text."""
    files = Path(__file__).parents[1].glob("[a-z]*.py")
    cards = sorted(path.stem for path in files)
    if card not in cards:
        raise UserError(f"no configs/{card}.py; there are {', '.join(cards)}")
    config = importlib.import_module(f"configs.{card}").get_config()
    config.data.max_documents = 0
    return config


def take_the_pile(
    config: config_dict.ConfigDict, files: str = "0[0-9]", documents: int = 8_000_000
) -> None:
    """Makes the nearest public copy of The Pile a config's text.

    The copy's 30 files are random samples of the whole, each of about 5.9 million
    documents, 34 GB of text, in 11 GB. So the beginning of ten is as good as the
    paper's, the first 8 million entries of the original, and what is not read is not
    downloaded.

    Args:
      config: to be changed.
      files: their numbers, from 00 to 29, as a pattern.
      documents: taken from these files, from all alike; 0 = all.
    """
    copy = "hf://datasets/monology/pile-uncopyrighted/train"
    config.data.sources = (f"{copy}/{files}.jsonl.zst",)
    config.data.max_documents = documents
    config.data.licence = (
        "of each part its own; this copy of The Pile lacks Books3, BookCorpus2, "
        "OpenSubtitles, YTSubtitles and OpenWebText2, a quarter of the original"
    )

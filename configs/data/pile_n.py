"""Gutenberg, Books3 and Wikipedia of The Pile, the paper's "pile-N", from local files.

    python -m cramjax.main --config=data/pile_n:a6000

As `pile.py`, with a filter on each entry's metadata. GLUE in the paper (arXiv
2212.14034, Table 7; A6000): raw 79.2, token filter 79.8, filter and sentence-length
order 80.1. Books3 is in copyright and was taken down: a copy without it is another
corpus than the paper's.
"""

from ml_collections import config_dict

import cramjax.config


def get_config(card: str = "a4000") -> config_dict.ConfigDict:
    """Returns the card's config with this text."""
    config = cramjax.config.from_file(card)
    config.data.sources = ("pile/*.jsonl.zst",)
    config.data.keep = ("meta.pile_set_name=Gutenberg (PG-19)|Books3|Wikipedia (en)",)
    config.data.max_documents = 0
    config.data.licence = "of each part its own"
    return config

"""The Pile (arXiv 2101.00027), from local files: its first 8 million entries.

    python -m cramjax.main --config=data/pile:a6000

Put the `.jsonl.zst` files into `pile/`: every file gives its beginning. The original is
no longer handed out; the text of the card's own config is a copy on the hub without the
parts that are in copyright. GLUE in the paper (arXiv
2212.14034, Table 7; A6000): raw 78.2, token filter 79.3, filter and sentence-length
order 80.1, the same with substring deduplication 80.0. Licence: that of each part; some
were taken down at the authors' request.
"""

from ml_collections import config_dict

import cramjax.config


def get_config(card: str = "a4000") -> config_dict.ConfigDict:
    """Returns the card's config with this text."""
    config = cramjax.config.from_file(card)
    config.data.sources = ("pile/*.jsonl.zst",)
    config.data.max_documents = 8_000_000
    config.data.licence = "of each part its own"
    return config

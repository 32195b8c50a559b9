"""C4, the cleaned Common Crawl of T5 (arXiv 1910.10683): its first 20 million entries.

    python -m cramjax.main --config=data/c4:a6000

From the hub: 365 million documents in 1,024 files, of which each gives its first
19,532, about 18 GB to download. GLUE in the paper (arXiv 2212.14034, Table 7 and
section 4.4; A6000): raw 75.9, token filter 79.3, filter and sentence-length order 79.0.
Licence: ODC-BY; the pages themselves have their own.
"""

from ml_collections import config_dict

import cramjax.config


def get_config(card: str = "a4000") -> config_dict.ConfigDict:
    """Returns the card's config with this text."""
    config = cramjax.config.from_file(card)
    config.data.sources = ("hf://datasets/allenai/c4/en/c4-train.*.json.gz",)
    config.data.max_documents = 20_000_000
    config.data.licence = "ODC-BY; of the pages, their own"
    return config

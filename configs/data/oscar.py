"""OSCAR 2019, the deduplicated English part of Common Crawl, from local files.

    python -m cramjax.main --config=data/oscar:a6000

Put `en_part_*.txt.gz` of the "unshuffled deduplicated" corpus into `oscar/`; its
documents are a blank line apart. Request access from the OSCAR project; its page on the
hub is a script, not files. GLUE in the paper (arXiv 2212.14034, Table 7; A6000): raw
79.1, token filter 79.2, filter and sentence-length order 79.2, with substring
deduplication 80.1. Licence: CC0 for the packaging; the pages themselves have their own.
"""

from ml_collections import config_dict

import cramjax.config


def get_config(card: str = "a4000") -> config_dict.ConfigDict:
    """Returns the card's config with this text."""
    config = cramjax.config.from_file(card)
    config.data.sources = ("oscar/en_part_*.txt.gz",)
    config.data.max_documents = 0
    config.data.licence = "CC0 for the packaging; of the pages, their own"
    return config

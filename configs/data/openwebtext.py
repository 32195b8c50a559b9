"""OpenWebText, pages that Reddit linked to: an open copy of GPT-2's WebText.

    python -m cramjax.main --config=data/openwebtext:a6000

From the hub's Parquet branch: 8 million documents, 38 GB of text, if the branch has
them all (large sets are there in part). GLUE in the paper (arXiv 2212.14034, Table 7;
A6000): raw 79.8, token filter 79.7, filter and sentence-length order 79.6, with
substring deduplication 80.0. Licence: CC0 for the packaging; the pages themselves have
their own.
"""

from ml_collections import config_dict

import cramjax.config


def get_config(card: str = "a4000") -> config_dict.ConfigDict:
    """Returns the card's config with this text."""
    config = cramjax.config.from_file(card)
    config.data.sources = (
        "hf://datasets/Skylion007/openwebtext@~parquet/plain_text/*train/*.parquet",
    )
    config.data.max_documents = 0
    config.data.licence = "CC0 for the packaging; of the pages, their own"
    return config

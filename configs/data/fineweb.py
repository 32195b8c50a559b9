"""FineWeb (arXiv 2406.17557), ten billion tokens of it; newer than the paper.

    python -m cramjax.main --config=data/fineweb:a6000

From the hub, about 30 GB to download. No row of the paper. Filtered by rules, as the
paper's rules of cramming allow; FineWeb-Edu is filtered by a model, which they do not.
Licence: ODC-BY; the pages themselves have their own.
"""

from ml_collections import config_dict

import cramjax.config


def get_config(card: str = "a4000") -> config_dict.ConfigDict:
    """Returns the card's config with this text."""
    config = cramjax.config.from_file(card)
    config.data.sources = ("hf://datasets/HuggingFaceFW/fineweb/sample/10BT/*.parquet",)
    config.data.max_documents = 0
    config.data.licence = "ODC-BY; of the pages, their own"
    return config

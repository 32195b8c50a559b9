"""English Wikipedia, and BookCorpus where there is a copy: BERT's own data.

    python -m cramjax.main --config=data/wikipedia:a6000

From the hub, about 12 GB to download: 6.4 million articles of November 2023 (the paper
took March 2022). BookCorpus is no longer available there: with a copy of it in `.txt`,
a blank line between books, add 'books/*.txt' to `data.sources`.

GLUE of both together in the paper (arXiv 2212.14034, Table 7; A6000): raw 78.1, token
filter 78.7, filter and sentence-length order 78.8. Licence: CC BY-SA 3.0 and GFDL.
"""

from ml_collections import config_dict

import cramjax.config


def get_config(card: str = "a4000") -> config_dict.ConfigDict:
    """Returns the card's config with this text."""
    config = cramjax.config.from_file(card)
    config.data.sources = ("hf://datasets/wikimedia/wikipedia/20231101.en/*.parquet",)
    config.data.max_documents = 0
    config.data.licence = "CC BY-SA 3.0, GFDL"
    return config

"""One day on an H200 (141 GB); the paper does not have this row.

    python -m cramjax.main --config=h200

Not run yet. At half of the card's dense 16-bit peak of 989 TFLOP/s, it would train on
794k tokens/s, 6.9e10 a day, eight times the paper's A6000 row (`cramjax plan` estimates
893k).

The text is four whole files of the copy of The Pile that `configs/a4000.py` describes:
23 million documents, 45 GB to download, some 2e10 tokens after the filter, 40 GB on
disk (also estimates). A day makes three to four passes over it, the later ones
reshuffled: up to four, a language model learns almost as much from repeated text as
from new text (arXiv 2305.16264).
"""

from ml_collections import config_dict

import cramjax.config


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe for an H200."""
    config = cramjax.config.from_file("a4000")
    config.micro_batch = 512  # so that two runs compare; 0 = the largest that fits
    copy = "hf://datasets/monology/pile-uncopyrighted/train"
    config.data.sources = (f"{copy}/0[0-3].jsonl.zst",)
    config.data.max_documents = 0
    return config

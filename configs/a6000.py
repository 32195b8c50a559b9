"""One day on an RTX A6000 (48 GB).

    python -m cramjax.main --config=configs/a6000.py

Reproduces the A6000 row of the paper's Table 3: 24 h, 8.7e9 tokens, GLUE-dev 80.4, the
mean of nine numbers; it was trained on a filtered and sorted subset of The Pile.

The text is the nearest public copy of theirs, 8 million documents of The Pile without
Books3, BookCorpus2, OpenSubtitles, YTSubtitles and OpenWebText2, a quarter of the
original: about 15 GB to download. For another text see `configs/data/`, or pass
--config.data.sources with --config.data.max_documents=0 and --config.data.licence.
"""

from ml_collections import config_dict

from configs import default
from configs.data import take_the_pile


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe of `configs/default.py` for an A6000."""
    config = default.get_config()
    config.micro_batch = 512
    config.model.attention = "cudnn"
    take_the_pile(config)
    return config

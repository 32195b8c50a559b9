"""One day on an RTX 2080 Ti (11 GB), in float16 with a dynamic loss scale.

    python -m cramjax.main --config=configs/rtx2080ti.py

Reproduces the 2080 Ti row of the paper's Table 3: 24 h, 4.3e9 tokens, GLUE-dev 79.2,
the mean of nine numbers; it was trained on a filtered and sorted subset of The Pile.
The card has no bfloat16.

The text is the nearest public copy of theirs, 8 million documents of The Pile without
Books3, BookCorpus2, OpenSubtitles, YTSubtitles and OpenWebText2, a quarter of the
original: about 15 GB to download. For another text see `configs/data/`, or pass
--config.data.sources with --config.data.max_documents=0 and --config.data.licence.
"""

from ml_collections import config_dict

from configs import default
from configs.data import take_the_pile


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe of `configs/default.py` with a 2080 Ti's size and dtype."""
    config = default.get_config()
    config.micro_batch = 96
    config.model.dtype = "float16"
    take_the_pile(config)
    return config

"""One day on an H200 (141 GB); the paper has no such row.

    python -m cramjax.main --config=configs/h200.py

An estimate, not a measurement: at half of the card's dense 16-bit peak (989 TFLOP/s,
794k tokens/s) a day is 6.9e10 tokens, eight times the paper's A6000 row.

The text is four files of the nearest public copy of The Pile, without Books3,
BookCorpus2, OpenSubtitles, YTSubtitles and OpenWebText2, a quarter of the original: 23
million documents, 45 GB to download, some 2e10 tokens after the filter, 40 GB on disk
(estimates, too). A day makes three to four passes over it, the later ones reshuffled:
up to four, a language model learns almost as much from repeated text as from new text
(arXiv 2305.16264). For another text see `configs/data/`, or pass --config.data.sources
and --config.data.licence.
"""

from ml_collections import config_dict

from configs import default
from configs.data import take_the_pile


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe of `configs/default.py` for an H200."""
    config = default.get_config()
    config.micro_batch = 512  # so that two runs compare; 0 = the largest that fits
    config.model.attention = "cudnn"
    take_the_pile(config, "0[0-3]", 0)
    return config

"""One day on an RTX 2080 Ti (11 GB), in float16 with a dynamic loss scale.

    python -m cramjax.main --config=configs/rtx2080ti.py --workdir=runs/rtx2080ti \
        --config.data.sources="('texts/*.txt.gz',)"

Reproduces the 2080 Ti row of the paper's Table 3: 24 h, 4.3e9 tokens, GLUE-dev 79.2,
the mean of nine numbers. The card has no bfloat16. Text and GLUE are yours to bring:
the row was trained on a filtered and sorted subset of The Pile.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe of `configs/default.py` with a 2080 Ti's size and dtype."""
    config = default.get_config()
    config.micro_batch = 96
    config.model.dtype = "float16"
    return config

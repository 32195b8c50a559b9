"""One day on an RTX A6000 (48 GB).

    python -m cramjax.main --config=configs/a6000.py --workdir=runs/a6000 \
        --config.data.sources="('texts/*.txt.gz',)"

Reproduces the A6000 row of the paper's Table 3: 24 h, 8.7e9 tokens, GLUE-dev 80.4,
the mean of nine numbers. Text and GLUE are yours to bring: the row was trained on a
filtered and sorted subset of The Pile.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe of `configs/default.py` for an A6000."""
    config = default.get_config()
    config.micro_batch = 512
    config.model.attention = "cudnn"
    return config

"""One day on an RTX A4000 (16 GB).

    python -m cramjax.main --config=configs/a4000.py --workdir=runs/a4000 \
        --config.data.sources="('texts/*.txt.gz',)"

Reproduces the A4000 row of the paper's Table 3: 24 h, 4.5e9 tokens, GLUE-dev 79.2,
the mean of nine numbers. Text and GLUE are yours to bring: the row was trained on a
filtered and sorted subset of The Pile.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe of `configs/default.py` for an A4000."""
    config = default.get_config()
    config.micro_batch = 128
    config.model.attention = "cudnn"
    return config

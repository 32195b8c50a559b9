"""One day on an H200 (141 GB); the paper has no such row.

    python -m cramjax.main --config=configs/h200.py --workdir=runs/h200 \
        --config.data.sources="('texts/*.txt.gz',)"

An estimate, not a measurement: at half of the card's dense 16-bit peak (989 TFLOP/s,
794k tokens/s) a day is 6.9e10 tokens, eight times the paper's A6000 row. With less text
than that, later passes over it are reshuffled.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe of `configs/default.py` for an H200."""
    config = default.get_config()
    config.micro_batch = 512  # so that two runs compare; 0 = the largest that fits
    config.model.attention = "cudnn"
    return config

"""One day on an RTX A6000 (48 GB).

    python -m cramjax.main --config=a6000

Not run yet. The target, the A6000 row of the paper's Table 3: 24 h, 8.7e9 tokens,
GLUE-dev 80.4 (mean of nine numbers). The text is that of `configs/a4000.py`.
"""

from ml_collections import config_dict

import cramjax.config


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe for an A6000."""
    config = cramjax.config.from_file("a4000")
    config.micro_batch = 512
    return config

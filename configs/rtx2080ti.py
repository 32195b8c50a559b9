"""One day on an RTX 2080 Ti (11 GB), in float16 with a dynamic loss scale.

    python -m cramjax.main --config=rtx2080ti

Not run yet. The target, the 2080 Ti row of the paper's Table 3: 24 h, 4.3e9 tokens,
GLUE-dev 79.2 (mean of nine numbers). The text is that of `configs/a4000.py`. The card
does not have bfloat16.
"""

from ml_collections import config_dict

import cramjax.config


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe for a 2080 Ti's memory and number format."""
    config = cramjax.config.from_file("a4000")
    config.micro_batch = 96
    config.model.attention = "xla"
    config.model.dtype = "float16"
    return config

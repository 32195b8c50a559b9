"""The final recipe of the paper, for one GPU and one day, without a text.

    python -m cramjax.main --config=default --config.data.sources="('my/*.txt',)"

cramjax/config/ has every key with its meaning, unit and value in the recipe;
--print_config prints the values.
"""

from ml_collections import config_dict

import cramjax.config


def get_config() -> config_dict.ConfigDict:
    """Returns the recipe as it is."""
    return cramjax.config.defaults()

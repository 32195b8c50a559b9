"""Rows of the paper's Table 8: choices about the text, one day on an RTX A6000 each.

    python -m cramjax.main --config=ablations/data:sorted-by-fragments

The base is `configs/a6000.py`: The Pile, filtered and in sentence-length order. ROWS
has what each row changes, and its GLUE in the paper. The baseline is below the 80.1 of
the same text in the paper's Table 7: compare a row with this one.
"""

from ml_collections import config_dict

import cramjax.config

# After each row, the paper's GLUE: the mean of nine numbers.
ROWS = {
    "baseline": {},  # 79.6
    "vocab-65536": {"model.vocab_size": 65536},  # 79.2; the paper prints 65336
    "cls": {"data.cls": True},  # 79.1
    "sentencepiece-bpe": {"data.tokenizer_kind": "sentencepiece_bpe"},  # 78.6
    "sorted-by-fragments": {"data.order": "fragments"},  # 78.7
    "sorted-by-unigram": {"data.order": "unigram"},  # 78.6
}


def get_config(row: str = "baseline") -> config_dict.ConfigDict:
    """Returns the recipe with one row's change."""
    config = cramjax.config.from_file("a6000")
    config.update_from_flattened_dict(ROWS[row])
    return config

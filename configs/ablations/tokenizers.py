"""Kinds of tokenizer and sizes of vocabulary, one day on an RTX A4000 each.

    python -m cramjax.main --config=ablations/tokenizers:unigram

The sizes are those of the paper's Figure 4, without numbers to put beside them, and the
kinds those that the authors' implementation offers. The rest is the recipe, as in
`configs/a4000.py`: "wordpiece" and "vocab-32768" are just that. The loss depends on the
tokenizer, so compare bits per byte, which the report has, and GLUE.
"""

from typing import Any

from ml_collections import config_dict

import cramjax.config
from cramjax.config.data import TOKENIZER_KINDS

ROWS: dict[str, dict[str, Any]] = {
    **{kind: {"data.tokenizer_kind": kind} for kind in TOKENIZER_KINDS},
    **{f"vocab-{2**n}": {"model.vocab_size": 2**n} for n in range(12, 17)},
}


def get_config(row: str) -> config_dict.ConfigDict:
    """Returns the recipe with one row's change."""
    config = cramjax.config.from_file("a4000")
    config.update_from_flattened_dict(ROWS[row])
    return config

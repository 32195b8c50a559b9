"""The paper's Table 10: the rows of Table 11 on a preliminary model.

    python -m cramjax.main --config=ablations/preliminary:post-norm

That model has 12 layers, 4 heads and rotary positions; all else is as in
`configs/ablations/architecture.py`: text, training, and the rows, which go by the same
names there. Where a row and this base set the same key, the row's value counts. Of the
paper's figures these are noted: `base` loss 1.89, MNLI 81.02/81.35, 50,946 tokens/s;
`no-rotary` loss 1.88.

The authors' script of this model leaves the scaled sinusoids in, and their released
code does not rotate: see the row `rotary` of Table 11.
"""

from typing import Any

from ml_collections import config_dict

import cramjax.config

architecture = cramjax.config.module("ablations/architecture")
BASE = {"layers": 12, "heads": 4, "positions": "scaled_sinusoidal+rotary"}
BASE_TOKENS_PER_S = 50_946

ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    # The base's three choices, each as the final model has it.
    "layers-16": {"layers": 16},
    "heads-12": {"heads": 12},
    "no-rotary": {"positions": "scaled_sinusoidal"},
    **{
        name: row.changes
        for name, row in architecture.ROWS.items()
        if row.loss and not row.changes.items() <= BASE.items()  # then it is the base
    },
    "learned-positions": {"positions": "learned+rotary"},
}


def get_config(row: str = "base") -> config_dict.ConfigDict:
    """Returns the base of the table with one row's changes.

    The ramp is that of the row's speed in Table 11, where it has one.
    """
    speed = BASE_TOKENS_PER_S
    if row in architecture.ROWS:
        speed = architecture.ROWS[row].tokens_per_s or speed
    return architecture.changed(BASE | ROWS[row], speed)

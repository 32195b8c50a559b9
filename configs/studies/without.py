"""What is each change of `configs/best.py` worth? All of them but one, in each row.

    cramjax study --study=studies/without:M --at_once=2 \
        --workdir=runs/without --config.data.sources="('wiki/*.txt',)"

Sizes, text and the stack's rate are those of `configs/studies/ladder.py`; the budget is
a quarter of the baseline's FLOPs. `model.sparse_last_layer` has no row: it changes no
loss and, with 40 % masked, saves 2.7 % of the FLOPs at full size.
"""

from cramjax.config import module
from cramjax.study import Study


def get_study(size: str = "M") -> Study:
    """Returns the rows of one size, with two seeds."""
    ladder = module("studies/ladder")
    stack = ladder.get_study(size).rows[f"{size} stack 1/4"]
    return Study(
        config="small",
        overrides=(*ladder.WIKIPEDIA, *stack),
        rows={
            "stack": (),
            "scaled sinusoids": ("model.positions=scaled_sinusoidal",),
            "AdamW": ("optimizer.name=adamw", "optimizer.learning_rate=4e-3"),
            "25 % masked": ("objective.mask_rate=0.25",),
            "80/10/10": ("objective.mask_share=0.8", "objective.random_share=0.1"),
            "triangle": ("schedule.curve=triangle", "schedule.falloff=0.25"),
        },
        seeds=(0, 1),
    )

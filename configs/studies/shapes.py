"""Does the shape matter, for the same FLOPs? Figure 1 of the paper, scaled down.

    cramjax study --study=studies/shapes --at_once=2 \
        --workdir=runs/shapes --config.data.sources="('wiki/*.txt',)"

Four shapes of about the same cost per token (2.4 to 3.0 MFLOP) with the recipe of
`configs/best.py`, whose losses drop early, and one learning rate for all. The paper
(arXiv 2212.14034, section 4.2) finds that the curves of shapes over tokens
differ, but reach the same loss for the same compute. The text is that of
`configs/studies/ladder.py`.
"""

from cramjax.config import module
from cramjax.study import Study

SHAPES = ((160, 1), (128, 2), (96, 4), (64, 9))  # width, layers


def get_study() -> Study:
    """Returns the rows, with one seed."""
    best, ladder = module("best"), module("studies/ladder")
    common = ("budget.tokens=0", "budget.flops=1.14e13", "optimizer.learning_rate=1e-2")
    return Study(
        config="small",
        overrides=(*best.overrides(), *ladder.WIKIPEDIA, *common),
        rows={f"{n} x {width}": ladder.shape(width, n) for width, n in SHAPES},
        seeds=(0,),
    )

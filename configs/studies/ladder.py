"""The paper's recipe and that of `configs/best.py` at three sizes: what is saved?

    cramjax study --study=studies/ladder:S --at_once=2 \
        --workdir=runs/ladder --config.data.sources="('wiki/*.txt',)"

Sizes are S, M and L: 0.3M, 1.5M and 5M non-embedding parameters; S,M,L are all of
them, in one table. The baseline is the paper's recipe, with a budget long enough to
leave the plateau near the unigram entropy early: after 26 to 37 % of it. The stack
of changes gets a half, a quarter and an eighth of the baseline's FLOPs. The text
is English, about 60 MB or more.

What was measured is in records/README.md.
"""

from cramjax.config import load, module
from cramjax.model.flops import train_flops_per_token
from cramjax.study import Study

# Width, layers, tokens of the baseline, and the peak rates of baseline and stack: the
# baseline's is the best one of three at S and M, the better one of two at L; the
# stack's the better one of two at S and L, the best one of three at M. The feed-forward
# width is 4 times the width.
SIZES = {
    "S": (128, 2, 16e6, 4e-3, 1e-2),
    "M": (192, 4, 12e6, 4e-3, 5e-3),
    "L": (320, 5, 12e6, 2e-3, 2e-3),
}


# What differs from the embedded books, in all studies on this text.
WIKIPEDIA = (
    "data.max_tokens_per_char=0.35",
    "data.held_out_share=0.005",
    "validation.every_minutes=0",
)


def shape(width: int, layers: int) -> tuple[str, ...]:
    """Returns the overrides of a shape, with heads of 32 channels."""
    return (
        f"model.width={width}",
        f"model.ffn_width={4 * width}",
        f"model.layers={layers}",
        f"model.heads={width // 32}",
    )


def get_study(sizes: str = "S") -> Study:
    """Returns the rows and seeds of one size, or of several with commas between."""
    rows, comparisons = {}, []
    for size in sizes.split(","):
        width, layers, tokens, baseline_rate, rate = SIZES[size]
        of_size = shape(width, layers)
        small = load("small", of_size)
        flops = tokens * train_flops_per_token(small.model, small.objective.mask_rate)
        changes = (
            *of_size,
            *module("best").overrides(),
            f"optimizer.learning_rate={rate}",
            "budget.tokens=0",
        )
        baseline = f"{size} baseline"
        stack = {
            f"{size} stack 1/{n}": (*changes, f"budget.flops={flops / n:.6g}")
            for n in (2, 4, 8)
        }
        rows[baseline] = (
            *of_size,
            f"budget.tokens={int(tokens)}",
            f"optimizer.learning_rate={baseline_rate}",
        )
        rows |= stack
        comparisons.append({baseline: (baseline,), f"{size} stack": tuple(stack)})
    return Study(
        config="small",
        overrides=WIKIPEDIA,
        rows=rows,
        seeds=(0, 1, 2),
        comparisons=comparisons,
    )

"""What keeps a small model near the unigram entropy for so long?

    cramjax study --study=studies/plateau --at_once=2 \
        --workdir=runs/plateau --config.data.sources="('wiki/*.txt',)"

4 million tokens with the paper's recipe, one change in each row: about 4 minutes a run
on one core. study.png shows when each row's loss drops. The text is that of
`configs/studies/ladder.py`.
"""

from cramjax.config import module
from cramjax.study import Study


def get_study() -> Study:
    """Returns the rows, with one seed."""
    return Study(
        config="small",
        overrides=(*module("studies/ladder").WIKIPEDIA, "budget.tokens=4000000"),
        rows={
            "scaled sinusoids": (),
            "sinusoids": ("model.positions=sinusoidal",),
            "learned": ("model.positions=learned", "glue.max_length=32"),
            "none": ("model.positions=none",),
            "rotary": ("model.positions=rotary",),
            "rate 2e-3": ("optimizer.learning_rate=2e-3",),
            "rate 8e-3": ("optimizer.learning_rate=8e-3",),
            "batch 16": ("micro_batch=16", "batch.sequences=16"),
            "muon": ("optimizer.name=muon", "optimizer.learning_rate=1e-2"),
        },
        seeds=(0,),
    )

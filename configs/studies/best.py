"""The paper's recipe against that of `configs/best.py`, ten minutes each.

    cramjax study --study=studies/best:h200 --workdir=runs/best \
        --config.glue.tasks="('cola','mrpc','rte','stsb')"

The argument is a config with the paper's recipe. For a budget of an hour, pass
--config.budget.hours=1 --config.batch.sequences=1024.
"""

from cramjax.config import module
from cramjax.study import Study


def get_study(config: str = "h200") -> Study:
    """Returns the two recipes, with one seed."""
    best = module("best")
    hours, sequences = best.BUDGETS["-10min"]
    return Study(
        config=config,
        overrides=(f"budget.hours={hours}", f"batch.sequences={sequences}"),
        rows={"paper": (), "best": best.overrides()},
        seeds=(0,),
    )

"""What the quickstart's recipe owes to its parts, on the embedded books, on a CPU.

    python scripts/study.py --study=configs/studies/quickstart.py \
        --workdir=runs/study-quickstart

Eleven rows, three seeds, 3 million tokens a run: about a minute and a half each on two
cores, 50 minutes in all. Every row changes one thing; Muon has three rates.
"""

from cramjax.study import Study


def get_study() -> Study:
    """Returns the rows and seeds."""
    return Study(
        config="configs/quickstart.py",
        overrides=("budget.tokens=3000000", "validation.every_minutes=0"),
        rows={
            "base": (),
            "cosine": ("schedule.curve=cosine",),
            "batch 256 with ramp": ("batch.sequences=256",),
            "batch 256 without ramp": ("batch.sequences=256", "batch.ramp_share=0"),
            "masking 15 %": ("objective.mask_rate=0.15",),
            "masking 40 %": ("objective.mask_rate=0.4",),
            "all <mask>": ("objective.mask_share=1.0", "objective.random_share=0.0"),
            "muon": ("optimizer.name=muon",),
            "muon, rate 8e-3": ("optimizer.name=muon", "optimizer.learning_rate=8e-3"),
            "muon, rate 2e-3": ("optimizer.name=muon", "optimizer.learning_rate=2e-3"),
            "separate documents": ("objective.separate_documents=True",),
        },
        seeds=(0, 1, 2),
    )

"""What a small model owes to its recipe, on the embedded books, on a CPU.

    cramjax study --study=studies/small \
        --workdir=runs/study-small

Eleven rows, three seeds, 2 million tokens a run: a bit more than a minute each on two
cores, 45 minutes in all. With AdamW, such a small model is still close to the
unigram entropy by then, where no other change can show: so the rows start from Muon.
"""

from cramjax.study import Study


def get_study() -> Study:
    """Returns the rows and seeds."""
    return Study(
        config="small",
        overrides=(
            "budget.tokens=2000000",
            "optimizer.name=muon",
            "validation.every_minutes=0",
        ),
        rows={
            "muon": (),
            "adamw": ("optimizer.name=adamw",),
            "cosine": ("schedule.curve=cosine",),
            "all <mask>": ("objective.mask_share=1.0", "objective.random_share=0.0"),
            "masking 15 %": ("objective.mask_rate=0.15",),
            "masking 40 %": ("objective.mask_rate=0.4",),
            "rate 8e-3": ("optimizer.learning_rate=8e-3",),
            "rate 2e-3": ("optimizer.learning_rate=2e-3",),
            "adamw, rate 8e-3": (
                "optimizer.name=adamw",
                "optimizer.learning_rate=8e-3",
            ),
            "adamw, rate 2e-3": (
                "optimizer.name=adamw",
                "optimizer.learning_rate=2e-3",
            ),
            "separate documents": ("objective.separate_documents=True",),
        },
        seeds=(0, 1, 2),
    )

"""The recipe's training choices, each against its alternative, on your own text.

    cramjax study --study=studies/recipe --workdir=runs/recipe \
        --config.data.sources="('texts/paragraphs.jsonl',)"

12 rows and 3 seeds, each run 1.8M parameters and 3M tokens: about 2.4 minutes on
two cores, 85 in all. All rows but AdamW's start from Muon: with AdamW, such a small
model is still close to the unigram entropy after 3M tokens, where no other change can
show.

Give it short documents (for example one paragraph each): in long ones hardly a block of
32 tokens has two, and "separate documents" is the baseline again.
"""

from cramjax.study import Study

RATES = {
    "muon": (5e-3, 1e-2, 2e-2),
    "adamw": (2e-3, 4e-3, 8e-3),
}


def get_study() -> Study:
    """Returns the rows and seeds."""
    return Study(
        config="small",
        overrides=(
            "model.vocab_size=8192",
            "model.width=160",
            "model.ffn_width=640",
            "micro_batch=32",
            "batch.sequences=128",
            "batch.ramp_share=0.6",
            "optimizer.name=muon",
            "optimizer.learning_rate=1e-2",
            "budget.tokens=3000000",
            "validation.every_minutes=0",
        ),
        rows={
            "base: muon 1e-2": (),
            **{
                f"{name} {rate:.0e}".replace("e-0", "e-"): (
                    f"optimizer.name={name}",
                    f"optimizer.learning_rate={rate}",
                )
                for name, rates in RATES.items()
                for rate in rates
                if (name, rate) != ("muon", 1e-2)
            },
            "cosine": ("schedule.curve=cosine",),
            "no ramp": ("batch.ramp_share=0.0",),
            "masking 15 %": ("objective.mask_rate=0.15",),
            "masking 40 %": ("objective.mask_rate=0.4",),
            "all <mask>": ("objective.mask_share=1.0", "objective.random_share=0.0"),
            "separate documents": ("objective.separate_documents=True",),
        },
        seeds=(0, 1, 2),
    )

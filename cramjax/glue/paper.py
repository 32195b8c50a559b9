"""The rows of the paper, to put scores beside, and its rules (arXiv 2212.14034).

Tables 3 and 6: GLUE dev sets, medians of five trials. The last row scores the authors'
published checkpoint, as its repository reports it.
"""

from typing import Any

from cramjax.schema import Config, GlueConfig

# Of section 5 and the authors' implementation: {key of `GlueConfig`: value}.
PROTOCOL = {
    "trials": 5,
    "max_length": 128,
    "empty_second": True,
    "epochs": 5,
    "batch_size": 16,
    "learning_rates": (4e-5,),
    "b1": 0.9,
    "b2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "warmup_steps": 0,
    "dropout": 0.1,
    "head_width": 1024,
}

# Scored sets with their metrics, in the paper's order; MNLI counts twice in the mean.
NINE = (
    ("mnli", "accuracy"),
    ("mnli_mm", "accuracy"),
    ("sst2", "accuracy"),
    ("stsb", "pearson"),
    ("rte", "accuracy"),
    ("qnli", "accuracy"),
    ("qqp", "f1"),
    ("mrpc", "f1"),
    ("cola", "matthews"),
)

# {row: (the nine numbers, their mean as printed)}
GLUE = {
    "BERT-base, fully trained": (
        (83.3, 83.5, 92.0, 86.7, 58.8, 90.6, 87.8, 89.3, 56.9),
        81.0,
    ),
    "BERT-base, no pretraining": (
        (34.1, 34.1, 79.9, 17.8, 47.3, 50.0, 68.6, 77.9, 0.0),
        45.5,
    ),
    "crammed, 2080 Ti": ((82.5, 82.8, 91.6, 86.2, 56.7, 89.1, 87.1, 88.3, 48.3), 79.2),
    "crammed, A4000": ((82.7, 83.1, 91.5, 86.4, 56.5, 88.8, 86.9, 88.2, 48.6), 79.2),
    "crammed, A6000": ((84.0, 84.4, 92.3, 87.0, 57.4, 90.0, 87.7, 89.0, 51.8), 80.4),
    "Izsak recipe, A6000": (
        (76.7, 76.9, 87.4, 78.7, 50.9, 85.9, 84.5, 81.8, 39.8),
        73.6,
    ),
    "BERT recipe stopped, A6000": (
        (64.4, 63.9, 79.3, 20.8, 49.8, 58.3, 75.1, 74.2, 7.7),
        54.8,
    ),
    "authors' published checkpoint": (
        (84.1, 84.6, 92.0, 87.4, 58.5, 90.2, 87.5, 88.9, 53.3),
        80.7,
    ),
}

# {row: mean of the ten numbers of SuperGLUE}
SUPERGLUE = {"BERT-base, fully trained": 56.6, "crammed, A6000": 54.2}


# Parts of the names of public texts that a trained model has chosen or written. Not
# here are the paper's texts and FineWeb: they are filtered by heuristics and by small
# classifiers, of the language or (The Pile's web pages) of the quality, and the paper
# takes such text as raw.
MODEL_FILTERED = (
    "fineweb-edu",
    "ultra-fineweb",
    "dclm",
    "nemotron-cc",
    "cosmopedia",
    "smollm-corpus",
)


def departures(glue: GlueConfig) -> list[str]:
    """Returns what of a protocol is not the paper's: "epochs 20 (5)", ..."""
    found = [
        f"{key} {_plain(getattr(glue, key))} ({_plain(value)})"
        for key, value in PROTOCOL.items()
        if getattr(glue, key) != value
    ]
    if len(glue.learning_rates) > 1:
        found.append("the learning rate is chosen for each task (one for all)")
    return found


def broken_rules(config: Config, imported: bool) -> list[str]:
    """Returns which rules of cramming (section 2) the scores break, as far as is known.

    Args:
      config: of the run, or of the fine-tuning alone.
      imported: the weights are those of another project's model.
    """
    sources = [source.lower().replace("_", "-") for source in config.data.sources]
    filtered = any(name in source for name in MODEL_FILTERED for source in sources)
    rules = {
        "an imported model": imported,
        "text that a model has filtered": filtered and not imported,
        "more than 24 hours of pretraining": config.budget.hours > 24 and not imported,
        "more than 5 epochs of fine-tuning": config.glue.epochs > 5,
        "another learning rate for each task": len(config.glue.learning_rates) > 1,
    }
    return [rule for rule, is_broken in rules.items() if is_broken]


def _plain(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)

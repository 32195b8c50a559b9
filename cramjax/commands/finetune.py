"""Fine-tunes a classifier, or a regression, on your own labelled text, and saves it.

cramjax finetune --checkpoint=DIR --train=train.tsv --dev=dev.tsv --text=COLUMN
    --label=COLUMN [--metric=accuracy] [--keep=best] [--workdir=DIR/classifier]
    [--config.glue.KEY=VALUE]

DIR is the workdir of a finished pretraining, or a folder with a checkpoint of Hugging
Face's BERT or ModernBERT. The files are .tsv with a header, or .jsonl; a row with two
texts has --text=FIRST,SECOND. --text, --label and --metric stand for the keys
glue.own_texts, glue.own_label and glue.own_metric; with the metrics pearson and
spearman, labels are numbers. The other keys of glue are those of the pretraining, but
glue.max_train_rows is 0: all rows. glue.trials are trained at each of
glue.learning_rates. At the rate with the best median on the dev rows, --keep=best saves
the best trial, --keep=median the median one. report.md has the scores.
"""

from collections.abc import Sequence
from pathlib import Path

from cramjax.errors import UserError
from cramjax.flags import parse_flags

NEEDED = {
    "checkpoint": "DIR",
    "train": "train.tsv",
    "dev": "dev.tsv",
    "text": "COLUMN",
    "label": "COLUMN",
}


def command(argv: Sequence[str]) -> None:
    """Trains, saves and reports."""
    given, overrides = parse_flags(argv, NEEDED, ["metric", "keep", "workdir"])
    for argument in overrides:
        if not argument.startswith(("--config.glue.", "--config.seed=")):
            raise UserError(
                f"unexpected argument {argument!r}: of the config, only the keys of "
                "--config.glue and --config.seed can be chosen"
            )
    if (keep := given["keep"] or "best") not in ("best", "median"):
        raise UserError(f"--keep={keep}: must be best or median")
    checkpoint = Path(given["checkpoint"])
    workdir = Path(given["workdir"] or checkpoint / "classifier")
    from cramjax import classify  # imports JAX

    own = [
        f"glue.own_texts={tuple(given['text'].split(','))}",
        f"glue.own_label={given['label']}",
        f"glue.own_metric={given['metric'] or 'accuracy'}",
    ]
    paths = {name: Path(given[name]).expanduser() for name in ("train", "dev")}
    classify.train(checkpoint, paths, own + overrides, keep, workdir)

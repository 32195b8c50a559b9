"""Fine-tunes a classifier, or a regression, on your own labelled text, and saves it.

cramjax finetune --checkpoint=DIR --train=train.tsv --dev=dev.tsv --text=COLUMN
    --label=COLUMN [--metric=accuracy] [--keep=best] [--workdir=DIR/classifier]
    [--config.glue.KEY=VALUE]

DIR is the workdir of a finished pretraining, or a folder with a checkpoint of Hugging
Face's BERT or ModernBERT. The files are .tsv with a header, or .jsonl; a row with two
texts has --text=FIRST,SECOND. --text, --label and --metric stand for the keys
glue.own_texts, glue.own_label and glue.own_metric; with the metrics pearson and
spearman, labels are numbers. The other keys of glue are those of the pretraining, but
glue.max_train_rows is 0: all rows. At each of glue.learning_rates, glue.trials
classifiers are trained. Of those at the rate with the best median on the dev rows,
--keep=best saves the best one, and --keep=median the median one. report.md has the
scores.
"""

import operator
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cramjax import files
from cramjax.checkpoints import classifier
from cramjax.checkpoints.load import Pretrained, load
from cramjax.config import Config, changed, to_dict
from cramjax.device.compile import use_cache
from cramjax.errors import UserError
from cramjax.flags import parse_flags
from cramjax.glue import data, evaluate, scores, tasks
from cramjax.page import Block, Heading, Table, to_markdown
from cramjax.report import REPORT
from cramjax.run import check_workdir

NEEDED = {
    "checkpoint": "DIR",
    "train": "train.tsv",
    "dev": "dev.tsv",
    "text": "COLUMN",
    "label": "COLUMN",
}


# Keys that may be overridden.
CHOSEN = re.compile(r"--config\.(seed|glue\.(?!tasks|starts|own_)\w+)=")


def command(argv: Sequence[str]) -> None:
    """Trains, saves the kept trial, and writes report.md."""
    given, overrides = parse_flags(argv, NEEDED, ["metric", "keep", "workdir"])
    for argument in overrides:
        if not CHOSEN.match(argument):
            raise UserError(
                f"unexpected argument {argument!r}: of the config, only seed and the "
                "keys of glue can be chosen, but not glue.tasks, starts and own_..."
            )
    if (keep := given["keep"] or "best") not in ("best", "median"):
        raise UserError(f"--keep={keep}: must be best or median")
    checkpoint = Path(given["checkpoint"])
    workdir = Path(given["workdir"] or checkpoint / "classifier")
    if (workdir / classifier.CONFIG).exists():
        raise UserError(f"--workdir={workdir} holds a model: pass another --workdir")
    paths = {name: Path(given[name]) for name in ("train", "dev")}
    for name, path in paths.items():
        data.check_file(path, f"--{name}=")
    pretrained = load(checkpoint)
    own = [
        f"glue.own_texts={tuple(given['text'].split(','))}",
        f"glue.own_label={given['label']}",
        f"glue.own_metric={given['metric'] or 'accuracy'}",
    ]
    config = _config(pretrained, [*own, *overrides])
    check_workdir(workdir, config)
    task = tasks.own(config.glue, *(str(path.absolute()) for path in paths.values()))
    use_cache(config.compilation_cache)
    trained: dict[str, list[Any]] = {}  # {rate: parameters of each trial}

    def on_trained(rate: float, params_T: Any) -> None:
        params_T = jax.device_get(params_T)
        for i in range(len(jax.tree.leaves(params_T)[0])):
            params = jax.tree.map(operator.itemgetter(i), params_T)
            trained.setdefault(f"{rate:g}", []).append(params)

    with tempfile.TemporaryDirectory() as folder:
        [entry] = evaluate.evaluate(
            config,
            {"pretrained": pretrained.params},
            pretrained.tokenizer,
            Path(folder),
            [task],
            imported=pretrained.config is None,
            on_trained=on_trained,
        ).values()
        rate, number, kept = _choose(entry, keep)
        found = scores.load_predictions(Path(folder), "own", "pretrained", rate)
        page = Path(folder, evaluate.TABLE).read_text()
    print(kept)
    saved_trial: list[Block] = [Heading("The saved trial"), kept]
    if labels := entry["labels"]:
        predicted_N = found["predictions_TxN"][number]
        saved_trial += _by_label(labels, found["labels_N"], predicted_N)
    glue = config.glue
    saved = classifier.SavedClassifier(
        model=config.model,
        params=trained[f"{rate:g}"][number],
        tokenizer=pretrained.tokenizer,
        labels=labels,
        columns=glue.own_texts,
        head_width=glue.head_width,
        pooling=glue.pooling,
        max_length=glue.max_length,
        empty_second=glue.empty_second,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / REPORT, f"{page}\n{to_markdown(saved_trial)}\n")
    facts = {name: entry[name] for name in ("train_rows", "dev_rows")}
    facts |= {"checkpoint": str(checkpoint), "saved": kept}
    classifier.save(workdir, saved, facts)
    print(f"classifier: {workdir}\nreport: {workdir / REPORT}")


def _config(pretrained: Pretrained, overrides: Sequence[str]) -> Config:
    """Returns the pretraining's config with overrides, for one task.

    Another project's model has the defaults, and computes in float32.
    """
    values = to_dict(pretrained.config or Config())
    dtype = values["model"]["dtype"] if pretrained.config else "float32"
    values["model"] = to_dict(pretrained.model) | {"dtype": dtype}
    values["glue"] |= {
        "tasks": ["own"],
        "starts": ["pretrained"],
        "max_train_rows": 0,
        "empty_second": pretrained.empty_second,
    }
    return changed(values, overrides)


def _choose(entry: dict[str, Any], keep: str) -> tuple[float, int, str]:
    """Returns the rate and the number of the trial to save, and a sentence about it.

    The median of an even number of trials is the lower of the middle two.
    """
    scored = entry["starts"]["pretrained"]
    if scores.has_diverged(scored):
        raise UserError(
            "trials diverged at every learning rate, their outputs are not finite: "
            "pass smaller --config.glue.learning_rates"
        )
    rate = scored["best_rate"]
    found = scored["scores"][f"{rate:g}"]
    order = np.argsort(found, kind="stable")
    number = int(order[-1 if keep == "best" else (len(found) - 1) // 2])
    return (
        rate,
        number,
        f"Trial {number + 1} was saved, the {keep} of {len(found)} at the learning "
        f"rate {rate:g}: {entry['metric']} {found[number]:.1f}. It was chosen on the "
        "dev rows, so new text may score lower.",
    )


def _by_label(
    labels: Sequence[str], labels_N: np.ndarray, predicted_N: np.ndarray
) -> list[Block]:
    """Returns the sections of report.md with per-label scores and confusions."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    ids = range(len(labels))
    found = precision_recall_fscore_support(
        labels_N, predicted_N, labels=ids, zero_division=0
    )
    of_labels = [
        [label, *(f"{100 * x:.1f}" for x in numbers), f"{count:,}"]
        for label, *numbers, count in zip(labels, *found, strict=True)
    ]
    confused = [
        [label, *map(str, counts_C)]
        for label, counts_C in zip(
            labels, confusion_matrix(labels_N, predicted_N, labels=ids), strict=True
        )
    ]
    return [
        "By label, in percent:",
        Table(["label", "precision", "recall", "F1", "dev rows"], of_labels),
        "How many dev rows of each label (a line) are predicted as which (a column):",
        Table(["", *labels], confused),
    ]

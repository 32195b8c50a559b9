"""The tasks: their files, and what is scored by which metric."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from cramjax.config import GlueConfig
from cramjax.errors import UserError

Record = dict[str, Any]  # of a JSON file

# Metrics of a regression, and of a label with two values.
OF_NUMBERS = ("pearson", "spearman")
OF_TWO_CLASSES = ("f1", "f1a")


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of one file.

    Attributes:
      files: candidates in the folder of the task's source; the first one that exists is
        read, tab-separated (.tsv) or with a JSON object per line (.jsonl).
      texts: columns of the texts; a dot leads into an object within a JSON object. See
        `data.encode` for their order.
      label: column of the label; None if the rows have no label.
      header: columns of a file that does not begin with their names.
      expand: makes several records of a line's JSON object.
      skip_short: rows with too few columns are left out and counted.
      own: the columns are those of `glue.own_texts` and `glue.own_label`.
    """

    files: tuple[str, ...]
    texts: tuple[str, ...]
    label: str | None = "label"
    header: tuple[str, ...] = ()
    expand: Callable[[Record], Iterable[Record]] | None = None
    skip_short: bool = False
    own: bool = False

    def hint(self, column: str) -> str:
        """Returns the end of a message about a column: the key that names it, or ""."""
        key = "own_label" if column == self.label else "own_texts"
        return f"; name another column in --config.glue.{key}" if self.own else ""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A labelled split that is scored.

    Attributes:
      name: in glue.json.
      title: as printed.
      split: where its rows are.
      metrics: keys of `scores.METRICS`; the first one chooses the learning rate.
      rows: how many the benchmark has; 0 = not known.
    """

    name: str
    title: str
    split: Split
    metrics: tuple[str, ...]
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
    """A training set, and the sets that a model trained on it is scored on.

    Attributes:
      name: in `glue.tasks`.
      title: as printed.
      source: "glue", "superglue", "embedded" or "own": the folder of its files.
      train: the training rows.
      dev: the scored sets; the first one chooses the learning rate.
      labels: all values of the label, in the order of the class ids; () = a number
        is predicted, or the labels are those of the training rows (source "own").
      test: {name of the file for the benchmark's server: unlabelled rows}.
      train_rows: how many the benchmark has; 0 = not known.
      rows_per_class: how many training rows of each class are used; 0 = all.
    """

    name: str
    title: str
    source: str
    train: Split
    dev: tuple[Scored, ...]
    labels: tuple[str, ...]
    test: dict[str, Split] = dataclasses.field(default_factory=dict)
    train_rows: int = 0
    rows_per_class: int = 0

    @property
    def regression(self) -> bool:
        """Whether a number is predicted."""
        return self.dev[0].metrics[0] in OF_NUMBERS


class Incomplete(UserError):
    """A task's training set or its dev sets are missing: it is not scored."""


class Row(NamedTuple):
    """A row: its line in the file (from 1), its texts, and its label as text."""

    line: int
    texts: tuple[str, ...]
    label: str | None


class Table(NamedTuple):
    """The rows of a split, where they were read, and how many were left out."""

    where: str
    rows: list[Row]
    left_out: int = 0


BINARY = ("0", "1")
BOOLEAN = ("false", "true")
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
PREMISE = ("premise", "hypothesis")

# {source: names of the files in the task's folder}
_FILES = {
    "glue": ("train.tsv", "dev.tsv"),
    "superglue": ("train.jsonl", "val.jsonl"),
    "embedded": ("train.tsv", "dev.tsv"),
}


def _task(
    source: str,
    name: str,
    folder: str,
    rows: tuple[int, int],
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    *,
    title: str = "",
    **form: Any,
) -> Task:
    """Returns a task with one dev set.

    Args:
      source: see `Task`.
      name: see `Task`.
      folder: of its files.
      rows: numbers of rows of train and dev.
      texts: see `Split`.
      labels: see `Task`.
      metrics: see `Scored`.
      title: the folder's name by default.
      **form: further attributes of `Split`.
    """
    train_file, dev_file = (f"{folder}/{file}" for file in _FILES[source])
    train = Split((train_file,), texts, **form)
    dev = dataclasses.replace(train, files=(dev_file,))
    test = {folder: Split((f"{folder}/test.tsv",), texts, label=None)}
    return Task(
        name,
        title or folder,
        source,
        train,
        (Scored(name, title or folder, dev, metrics, rows[1]),),
        labels,
        test if source == "glue" else {},
        train_rows=rows[0],
    )


_glue = functools.partial(_task, "glue")
_superglue = functools.partial(_task, "superglue")
# In the package, see cramjax/demo/README.md.
_embedded = functools.partial(_task, "embedded")


def _mnli() -> Task:
    """Has two dev sets; the diagnostic set has no labels."""
    task = _glue(
        *("mnli", "MNLI", (392702, 9815), PAIR),
        ("entailment", "neutral", "contradiction"),
        label="gold_label",
    )

    def dev(name: str, title: str, kind: str, rows: int) -> Scored:
        split = dataclasses.replace(task.train, files=(f"MNLI/dev_{kind}.tsv",))
        return Scored(name, title, split, ("accuracy",), rows)

    test = {
        "MNLI-m": "MNLI/test_matched.tsv",
        "MNLI-mm": "MNLI/test_mismatched.tsv",
        "AX": "diagnostic/diagnostic.tsv",
    }
    return dataclasses.replace(
        task,
        dev=(
            dev("mnli", "MNLI-m", "matched", 9815),
            dev("mnli_mm", "MNLI-mm", "mismatched", 9832),
        ),
        test={name: Split((file,), PAIR, label=None) for name, file in test.items()},
    )


def _superglue_rte() -> Task:
    """Its model is also scored on the diagnostic sets."""
    task = _superglue(
        *("superglue_rte", "RTE", (2490, 277), PREMISE, ENTAILMENT),
        title="RTE (SuperGLUE)",
    )
    axb, axg = Split(("AX-b/AX-b.jsonl",), PAIR), Split(("AX-g/AX-g.jsonl",), PREMISE)
    diagnostics = (
        Scored("axb", "AX-b", axb, ("matthews",), 1104),
        Scored("axg", "AX-g", axg, ("accuracy",), 356),
    )
    return dataclasses.replace(task, dev=(*task.dev, *diagnostics))


def _multirc_answers(record: Record) -> Iterator[Record]:
    """Yields a record for each answer to each question about a paragraph."""
    passage = record["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "question": question["question"],
                "paragraph": passage["text"],
                "answer": answer["text"],
                "label": answer["label"],
            }


INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)

# GLUE (arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537) with the first metric and the
# numbers of rows as in arXiv 2212.14034, section 5 and appendix E. Further metrics are
# for the averages that others report, see `scores.AVERAGES`.
_LIST = (
    _glue(
        *("cola", "CoLA", (8551, 1043), ("sentence",), BINARY, ("matthews",)),
        header=("source", "label", "mark", "sentence"),
    ),
    _glue("sst2", "SST-2", (67349, 872), ("sentence",), BINARY),
    _glue(
        *("mrpc", "MRPC", (3668, 408), ("#1 String", "#2 String"), BINARY),
        ("f1", "accuracy"),
        label="Quality",
    ),
    _glue(
        "stsb", "STS-B", (5749, 1500), PAIR, (), ("pearson", "spearman"), label="score"
    ),
    _glue(
        *("qqp", "QQP", (363846, 40430), ("question1", "question2"), BINARY),
        ("f1", "accuracy"),
        label="is_duplicate",
        # Some questions of the official files have line breaks, which cut their rows.
        skip_short=True,
    ),
    _mnli(),
    _glue("qnli", "QNLI", (104743, 5463), ("question", "sentence"), ENTAILMENT),
    _glue("rte", "RTE", (2490, 277), PAIR, ENTAILMENT),
    # In no average: rows of its training and dev sets contradict each other.
    _glue("wnli", "WNLI", (635, 71), PAIR, BINARY),
    # The order of three and more texts is the one of the authors' implementation.
    _superglue(
        *("cb", "CB", (250, 56), PREMISE, ("entailment", "contradiction", "neutral")),
        ("macro_f1", "accuracy"),
    ),
    # Both alternatives are in one row, and the class says which one it is.
    _superglue(
        *("copa", "COPA", (400, 100), ("question", "premise", "choice1", "choice2")),
        BINARY,
    ),
    _superglue(
        *("multirc", "MultiRC", (27243, 4848), ("question", "paragraph", "answer")),
        *(BINARY, ("f1a",)),
        expand=_multirc_answers,
    ),
    _superglue_rte(),
    _superglue("wic", "WiC", (5428, 638), ("word", *PAIR), BOOLEAN),
    # Each span is given by its position, counted in words, and by its text.
    _superglue(
        *("wsc", "WSC", (554, 104)),
        (
            "text",
            "target.span1_index",
            "target.span2_index",
            "target.span1_text",
            "target.span2_text",
        ),
        BOOLEAN,
    ),
    _superglue("boolq", "BoolQ", (9427, 3270), ("question", "passage"), BOOLEAN),
    _embedded("intents", "intents", (0, 0), ("sentence",), INTENTS, title="Intents"),
    dataclasses.replace(
        _embedded(
            *("intents10", "intents", (0, 0), ("sentence",), INTENTS),
            title="Intents, 10 examples per class",
        ),
        rows_per_class=10,
    ),
    _embedded(
        *("acceptability", "acceptability", (0, 0), ("sentence",), BINARY),
        ("matthews",),
        title="Acceptability",
    ),
)
TASKS = {task.name: task for task in _LIST}


def own(glue: GlueConfig) -> Task:
    """Returns the user's task, from the folder `glue.own_dir`."""

    def split(*stems: str) -> Split:
        files = tuple(f"{stem}.{kind}" for stem in stems for kind in ("tsv", "jsonl"))
        return Split(files, glue.own_texts, glue.own_label, own=True)

    dev = Scored(
        *("own", "Own task", split("dev", "val", "validation")), (glue.own_metric,)
    )
    return Task("own", "Own task", "own", split("train"), (dev,), labels=())


def get(glue: GlueConfig) -> list[Task]:
    """Returns the tasks that are named in `glue.tasks`, each once.

    Raises:
      UserError: an unknown name.
    """
    tasks = TASKS | {"own": own(glue)}
    scored_by = {scored.name: task for task in tasks.values() for scored in task.dev}
    for name in glue.tasks:
        if name not in tasks:
            hint = f"not one of {', '.join(tasks)}"
            if name in scored_by:
                hint = f"scored by {scored_by[name].name!r}"
            raise UserError(f"config.glue.tasks: {name!r} is {hint}")
    return [tasks[name] for name in dict.fromkeys(glue.tasks)]

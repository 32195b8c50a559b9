"""The tasks: their files, and what is scored by which metric."""

import collections
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
    """Rows of one file."""

    # Candidates in the folder of the task's source. The first one that exists is read,
    # tab-separated (.tsv) or with a JSON object per line (.jsonl).
    files: tuple[str, ...]
    # Columns; a dot leads into an object within a JSON object. See `data.encode` for
    # their order.
    texts: tuple[str, ...]
    label: str | None = "label"  # column; None if the rows have no label
    # The columns' names, of a file that does not begin with them.
    header: tuple[str, ...] = ()
    # Makes several records of a line's JSON object.
    expand: Callable[[Record], Iterable[Record]] | None = None
    skip_short: bool = False  # leave out rows with too few columns, and count them
    own: bool = False  # the columns are those of `glue.own_texts` and `glue.own_label`

    def hint(self, column: str) -> str:
        """Returns the end of a message about a column: the key that names it, or ""."""
        key = "own_label" if column == self.label else "own_texts"
        return f"; name another column in --config.glue.{key}" if self.own else ""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A labelled split that is scored."""

    name: str  # in glue.json
    title: str  # as printed
    split: Split
    metrics: tuple[str, ...]  # of `config.glue.METRICS`; the first chooses the rate
    rows: int = 0  # how many the benchmark has; 0 = not known


@dataclasses.dataclass(frozen=True)
class Task:
    """A training set, and the sets that a model trained on it is scored on."""

    name: str  # in `glue.tasks`
    title: str  # as printed
    source: str  # "glue", "superglue", "embedded" or "own": the folder of its files
    train: Split
    dev: tuple[Scored, ...]  # the first one chooses the learning rate
    # All values of the label, in the order of the class ids; () = a number is
    # predicted, or the labels are those of the training rows, sorted.
    labels: tuple[str, ...]
    # {name of the file for the benchmark's server: unlabelled rows}
    test: dict[str, Split] = dataclasses.field(default_factory=dict)
    train_rows: int = 0  # how many the benchmark has; 0 = not known
    rows_per_class: int = 0  # how many training rows of each class are used; 0 = all

    @property
    def regression(self) -> bool:
        """Whether a number is predicted."""
        return self.dev[0].metrics[0] in OF_NUMBERS


class Incomplete(UserError):
    """A task's training set or its dev sets are missing: it is not scored."""

    def __init__(self, title: str, why: str, hint: str):
        """Takes the task's title, what is missing, and what to do about it."""
        super().__init__(f"{title} is not scored: {why}; {hint}")
        self.title, self.why, self.hint = title, why, hint


def missing(errors: Iterable[Incomplete]) -> list[str]:
    """Returns a line for each hint, about all tasks that it helps."""
    by_hint = collections.defaultdict(list)
    for error in errors:
        by_hint[error.hint].append(error)
    return [
        str(first)
        if not others
        else f"{', '.join(error.title for error in (first, *others))} are not scored: "
        f"{first.why}; {hint}"
        for hint, (first, *others) in by_hint.items()
    ]


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


F1 = ("f1", "accuracy")
BINARY = ("0", "1")
BOOLEAN = ("false", "true")
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
PREMISE = ("premise", "hypothesis")


def _task(
    source: str,
    folder: str,
    rows: tuple[int, int],
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    **form: Any,
) -> Task:
    """Returns a task of a benchmark, with one dev set.

    Its name is the folder's in lower case. `rows` are the numbers of rows of train and
    dev, and `form` has further attributes of `Split`.
    """
    name = folder.lower().replace("-", "")
    kind, dev_stem = ("tsv", "dev") if source == "glue" else ("jsonl", "val")
    train = Split((f"{folder}/train.{kind}",), texts, **form)
    dev = dataclasses.replace(train, files=(f"{folder}/{dev_stem}.{kind}",))
    test = {folder: Split((f"{folder}/test.tsv",), texts, label=None)}
    return Task(
        name,
        folder,
        source,
        train,
        (Scored(name, folder, dev, metrics, rows[1]),),
        labels,
        test if source == "glue" else {},
        train_rows=rows[0],
    )


_glue = functools.partial(_task, "glue")
_superglue = functools.partial(_task, "superglue")


def _mnli() -> Task:
    """Has two dev sets; the diagnostic set has no labels."""
    classes = ("entailment", "neutral", "contradiction")
    task = _glue("MNLI", (392702, 9815), PAIR, classes, label="gold_label")

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
    task = _superglue("RTE", (2490, 277), PREMISE, ENTAILMENT)
    name, title = "superglue_rte", "RTE (SuperGLUE)"
    axb, axg = Split(("AX-b/AX-b.jsonl",), PAIR), Split(("AX-g/AX-g.jsonl",), PREMISE)
    return dataclasses.replace(
        task,
        name=name,
        title=title,
        dev=(
            dataclasses.replace(task.dev[0], name=name, title=title),
            Scored("axb", "AX-b", axb, ("matthews",), 1104),
            Scored("axg", "AX-g", axg, ("accuracy",), 356),
        ),
    )


def _embedded(name: str, title: str, metric: str = "accuracy", **more: int) -> Task:
    """Returns a task in the package, see cramjax/demo/README.md."""
    folder = name.rstrip("0123456789")  # intents10 has the files of intents
    train, dev = (
        Split((f"{folder}/{stem}.tsv",), ("sentence",)) for stem in ("train", "dev")
    )
    scored = Scored(name, title, dev, (metric,))
    return Task(name, title, "embedded", train, (scored,), labels=(), **more)


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


# GLUE (arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537) with the first metric and the
# numbers of rows as in arXiv 2212.14034, section 5 and appendix E. Further metrics are
# for the averages that others report, see `scores.AVERAGES`.
_LIST = (
    _glue(
        "CoLA",
        (8551, 1043),
        ("sentence",),
        BINARY,
        ("matthews",),
        header=("source", "label", "mark", "sentence"),
    ),
    _glue("SST-2", (67349, 872), ("sentence",), BINARY),
    _glue("MRPC", (3668, 408), ("#1 String", "#2 String"), BINARY, F1, label="Quality"),
    _glue("STS-B", (5749, 1500), PAIR, (), OF_NUMBERS, label="score"),
    _glue(
        "QQP",
        (363846, 40430),
        ("question1", "question2"),
        BINARY,
        F1,
        label="is_duplicate",
        # Some questions of the official files have line breaks, which cut their rows.
        skip_short=True,
    ),
    _mnli(),
    _glue("QNLI", (104743, 5463), ("question", "sentence"), ENTAILMENT),
    _glue("RTE", (2490, 277), PAIR, ENTAILMENT),
    # In no average: rows of its training and dev sets contradict each other.
    _glue("WNLI", (635, 71), PAIR, BINARY),
    # The order of three and more texts is the one of the authors' implementation.
    _superglue(
        "CB",
        (250, 56),
        PREMISE,
        ("entailment", "contradiction", "neutral"),
        ("macro_f1", "accuracy"),
    ),
    # Both alternatives are in one row, and the class says which one it is.
    _superglue(
        "COPA", (400, 100), ("question", "premise", "choice1", "choice2"), BINARY
    ),
    _superglue(
        "MultiRC",
        (27243, 4848),
        ("question", "paragraph", "answer"),
        BINARY,
        ("f1a",),
        expand=_multirc_answers,
    ),
    _superglue_rte(),
    _superglue("WiC", (5428, 638), ("word", *PAIR), BOOLEAN),
    # Each span is given by its position, counted in words, and by its text.
    _superglue(
        "WSC",
        (554, 104),
        (
            "text",
            "target.span1_index",
            "target.span2_index",
            "target.span1_text",
            "target.span2_text",
        ),
        BOOLEAN,
    ),
    _superglue("BoolQ", (9427, 3270), ("question", "passage"), BOOLEAN),
    _embedded("intents", "Intents"),
    _embedded("intents10", "Intents, 10 examples per class", rows_per_class=10),
    _embedded("acceptability", "Acceptability", "matthews"),
    _embedded("swapped", "Swapped words"),
)
TASKS = {task.name: task for task in _LIST}


def own(glue: GlueConfig, train: str = "", dev: str = "") -> Task:
    """Returns the user's task.

    Its files are given by their absolute paths, or they are in `glue.own_dir`.
    """

    def split(file: str, *stems: str) -> Split:
        names = tuple(f"{stem}.{kind}" for stem in stems for kind in ("tsv", "jsonl"))
        files = (file,) if file else names
        return Split(files, glue.own_texts, glue.own_label, own=True)

    of_dev = split(dev, "dev", "val", "validation")
    scored = Scored("own", "Own task", of_dev, (glue.own_metric,))
    of_train = split(train, "train")
    return Task("own", "Own task", "own", of_train, (scored,), labels=())


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

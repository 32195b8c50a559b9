"""The tasks, one entry each: their files, and what is scored by which metric."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from cramjax.config import GlueConfig
from cramjax.errors import UserError

Columns = tuple[str, ...] | tuple[int, ...]
Record = dict[str, Any]  # of a JSON file

# Metrics of a regression, and of a label with two values.
OF_NUMBERS = ("pearson", "spearman")
OF_TWO_CLASSES = ("f1", "f1a")


@dataclasses.dataclass(frozen=True)
class Form:
    """The format of a file's rows.

    Attributes:
      texts: columns of the texts: names, or numbers if the file has no header. A dot
        leads into an object within a JSON object. See `data.encode` for their order.
      label: column of the label; None if the rows have no label.
      width: number of columns of a file without a header; 0 = it has a header.
      expand: makes several records of a line's JSON object.
      skip_short: rows with too few columns are left out and counted.
      texts_key: the config key that names the texts; "" if they are fixed.
      label_key: likewise for the label.
    """

    texts: Columns
    label: str | int | None
    width: int = 0
    expand: Callable[[Record], Iterable[Record]] | None = None
    skip_short: bool = False
    texts_key: str = ""
    label_key: str = ""

    def hint(self, column: str | int) -> str:
        """Returns the end of a message about a column: the key that names it, or ""."""
        key = self.label_key if column == self.label else self.texts_key
        return f"; name another column in --config.{key}" if key else ""


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of one file.

    Attributes:
      files: candidates in the folder of the task's source; the first one that exists is
        read, tab-separated (.tsv) or with a JSON object per line (.jsonl).
      form: the format of the rows.
    """

    files: tuple[str, ...]
    form: Form


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
      tfds_texts: names of the texts in TFDS if they are not those of `train`.
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
    tfds_texts: tuple[str, ...] = ()
    rows_per_class: int = 0

    @property
    def regression(self) -> bool:
        """Whether a number is predicted."""
        return self.dev[0].metrics[0] in OF_NUMBERS


class Incomplete(UserError):
    """A task's training set or its dev sets are missing.

    Attributes:
      key: the key of the config's section `glue` that names their folder.
      note: a sentence about it, printed if other tasks are scored.
    """

    def __init__(self, key: str, message: str, note: str = ""):
        """By default the note is the message."""
        super().__init__(message)
        self.key = key
        self.note = note or message


class Row(NamedTuple):
    """A row: its line in the file (from 1), its texts, and its label as text."""

    line: int
    texts: tuple[str, ...]
    label: str | None


class Table(NamedTuple):
    """A split as it was read: from where, its rows, and how many were left out."""

    where: str
    rows: list[Row]
    left_out: int = 0


BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
KINDS = ("tsv", "jsonl")  # of files


def _glue(
    name: str,
    folder: str,
    form: Form,
    labels: tuple[str, ...],
    scores: tuple[str, ...],
    rows: tuple[int, int],
    test_texts: tuple[str, ...] = (),
    tfds_texts: tuple[str, ...] = (),
) -> Task:
    """A task of GLUE with one dev set; `rows` are those of train and dev."""
    dev = Split((f"{folder}/dev.tsv",), form)
    test = Form(test_texts or form.texts, None)
    return Task(
        name,
        folder,
        "glue",
        Split((f"{folder}/train.tsv",), form),
        (Scored(name, folder, dev, scores, rows[1]),),
        labels,
        {folder: Split((f"{folder}/test.tsv",), test)},
        train_rows=rows[0],
        tfds_texts=tfds_texts,
    )


def _mnli() -> Task:
    """Has two dev sets; the diagnostic set has no labels."""
    form, test = Form(PAIR, "gold_label"), Form(PAIR, None)

    def dev(name: str, suffix: str, kind: str, rows: int) -> Scored:
        split = Split((f"MNLI/dev_{kind}.tsv",), form)
        return Scored(name, f"MNLI-{suffix}", split, ("accuracy",), rows)

    return Task(
        "mnli",
        "MNLI",
        "glue",
        Split(("MNLI/train.tsv",), form),
        (
            dev("mnli", "m", "matched", 9815),
            dev("mnli_mm", "mm", "mismatched", 9832),
        ),
        ("entailment", "neutral", "contradiction"),
        {
            "MNLI-m": Split(("MNLI/test_matched.tsv",), test),
            "MNLI-mm": Split(("MNLI/test_mismatched.tsv",), test),
            "AX": Split(("diagnostic/diagnostic.tsv",), test),
        },
        train_rows=392702,
        tfds_texts=("premise", "hypothesis"),
    )


def _superglue(
    name: str,
    folder: str,
    form: Form,
    labels: tuple[str, ...],
    scores: tuple[str, ...],
    rows: tuple[int, int],
    title: str = "",
    also: tuple[Scored, ...] = (),
) -> Task:
    """A task of SuperGLUE; `also` are further sets that its model is scored on."""
    title = title or folder
    dev = Split((f"{folder}/val.jsonl",), form)
    return Task(
        name,
        title,
        "superglue",
        Split((f"{folder}/train.jsonl",), form),
        (Scored(name, title, dev, scores, rows[1]), *also),
        labels,
        train_rows=rows[0],
    )


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


_DIAGNOSTICS = (
    Scored(
        "axb",
        "AX-b",
        Split(("AX-b/AX-b.jsonl",), Form(PAIR, "label")),
        ("matthews",),
        1104,
    ),
    Scored(
        "axg",
        "AX-g",
        Split(("AX-g/AX-g.jsonl",), Form(("premise", "hypothesis"), "label")),
        ("accuracy",),
        356,
    ),
)


def _embedded(name: str, title: str, labels: tuple[str, ...], score: str) -> Task:
    """A task in the package, see cramjax/demo/README.md."""
    form = Form(("sentence",), "label")
    train, dev = (Split((f"{name}/{stem}.tsv",), form) for stem in ("train", "dev"))
    return Task(
        name, title, "embedded", train, (Scored(name, title, dev, (score,)),), labels
    )


_INTENTS = _embedded(
    "intents",
    "Intents",
    (
        "AddToPlaylist",
        "BookRestaurant",
        "GetWeather",
        "PlayMusic",
        "RateBook",
        "SearchCreativeWork",
        "SearchScreeningEvent",
    ),
    "accuracy",
)
_INTENTS10 = dataclasses.replace(
    _INTENTS,
    name="intents10",
    title="Intents, 10 examples per class",
    dev=(
        dataclasses.replace(
            _INTENTS.dev[0], name="intents10", title="Intents, 10 examples per class"
        ),
    ),
    rows_per_class=10,
)

# GLUE (arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537) with the first metric and the
# numbers of rows as in arXiv 2212.14034, section 5 and appendix E. Further metrics are
# for the averages that others report, see `scores.AVERAGES`.
_LIST = (
    _glue(
        "cola",
        "CoLA",
        Form((3,), 1, width=4),
        BINARY,
        ("matthews",),
        (8551, 1043),
        test_texts=("sentence",),
        tfds_texts=("sentence",),
    ),
    _glue(
        "sst2",
        "SST-2",
        Form(("sentence",), "label"),
        BINARY,
        ("accuracy",),
        (67349, 872),
    ),
    _glue(
        "mrpc",
        "MRPC",
        Form(("#1 String", "#2 String"), "Quality"),
        BINARY,
        ("f1", "accuracy"),
        (3668, 408),
        tfds_texts=PAIR,
    ),
    _glue(
        "stsb", "STS-B", Form(PAIR, "score"), (), ("pearson", "spearman"), (5749, 1500)
    ),
    _glue(
        "qqp",
        "QQP",
        # Some questions of the official files have line breaks, which cut their rows.
        Form(("question1", "question2"), "is_duplicate", skip_short=True),
        BINARY,
        ("f1", "accuracy"),
        (363846, 40430),
    ),
    _mnli(),
    _glue(
        "qnli",
        "QNLI",
        Form(("question", "sentence"), "label"),
        ENTAILMENT,
        ("accuracy",),
        (104743, 5463),
    ),
    _glue("rte", "RTE", Form(PAIR, "label"), ENTAILMENT, ("accuracy",), (2490, 277)),
    # In no average: rows of its training and dev sets contradict each other.
    _glue("wnli", "WNLI", Form(PAIR, "label"), BINARY, ("accuracy",), (635, 71)),
    # The order of three and more texts is the one of the authors' implementation.
    _superglue(
        "cb",
        "CB",
        Form(("premise", "hypothesis"), "label"),
        ("entailment", "contradiction", "neutral"),
        ("macro_f1", "accuracy"),
        (250, 56),
    ),
    # Both alternatives are in one row, and the class says which one it is.
    _superglue(
        "copa",
        "COPA",
        Form(("question", "premise", "choice1", "choice2"), "label"),
        BINARY,
        ("accuracy",),
        (400, 100),
    ),
    _superglue(
        "multirc",
        "MultiRC",
        Form(("question", "paragraph", "answer"), "label", expand=_multirc_answers),
        BINARY,
        ("f1a",),
        (27243, 4848),
    ),
    _superglue(
        "superglue_rte",
        "RTE",
        Form(("premise", "hypothesis"), "label"),
        ENTAILMENT,
        ("accuracy",),
        (2490, 277),
        title="RTE (SuperGLUE)",
        also=_DIAGNOSTICS,
    ),
    _superglue(
        "wic",
        "WiC",
        Form(("word", *PAIR), "label"),
        ("false", "true"),
        ("accuracy",),
        (5428, 638),
    ),
    # Each span is given by its position, counted in words, and by its text.
    _superglue(
        "wsc",
        "WSC",
        Form(
            (
                "text",
                "target.span1_index",
                "target.span2_index",
                "target.span1_text",
                "target.span2_text",
            ),
            "label",
        ),
        ("false", "true"),
        ("accuracy",),
        (554, 104),
    ),
    _superglue(
        "boolq",
        "BoolQ",
        Form(("question", "passage"), "label"),
        ("false", "true"),
        ("accuracy",),
        (9427, 3270),
    ),
    _INTENTS,
    _INTENTS10,
    _embedded("acceptability", "Acceptability", BINARY, "matthews"),
)
TASKS = {task.name: task for task in _LIST}


def own(glue: GlueConfig) -> Task:
    """Returns the user's task, from the folder `glue.own_dir`."""
    form = Form(
        glue.own_texts,
        glue.own_label,
        texts_key="glue.own_texts",
        label_key="glue.own_label",
    )

    def split(*stems: str) -> Split:
        return Split(tuple(f"{s}.{kind}" for s in stems for kind in KINDS), form)

    dev = split("dev", "val", "validation")
    return Task(
        "own",
        "Own task",
        "own",
        split("train"),
        (Scored("own", "Own task", dev, (glue.own_metric,)),),
        labels=(),
    )


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

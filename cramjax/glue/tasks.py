"""The tasks, one entry each: where the rows are, what is scored and how."""

import dataclasses
from collections.abc import Sequence

from cramjax.errors import UserError
from cramjax.glue import metrics


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task kept in `<folder>/train.tsv` and `<folder>/dev.tsv`.

    Attributes:
      title: as printed.
      folder: below `glue.data_dir`; or "embedded:<folder>" in the package.
      texts: columns of the one or two texts: names, or numbers if there is no header.
      label: column of the label.
      labels: all its values, in the order of the class ids.
      metric: a key of `metrics.METRICS`.
      header: whether the first line names the columns.
      rows_per_class: if not 0, so many training rows of each class are used.
    """

    title: str
    folder: str
    texts: tuple[str, ...] | tuple[int, ...]
    label: str | int
    labels: tuple[str, ...]
    metric: str
    header: bool = True
    rows_per_class: int = 0

    def __post_init__(self):
        assert self.metric in metrics.METRICS


_INTENTS = Task(
    title="Intents",
    folder="embedded:intents",
    texts=("sentence",),
    label="label",
    labels=(
        "AddToPlaylist",
        "BookRestaurant",
        "GetWeather",
        "PlayMusic",
        "RateBook",
        "SearchCreativeWork",
        "SearchScreeningEvent",
    ),
    metric="accuracy",
)

TASKS = {
    # GLUE (arXiv 1804.07461), metrics as in arXiv 2212.14034, section 5.
    "cola": Task("CoLA", "CoLA", (3,), 1, ("0", "1"), "matthews", header=False),
    "sst2": Task("SST-2", "SST-2", ("sentence",), "label", ("0", "1"), "accuracy"),
    "mrpc": Task(
        "MRPC", "MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1"), "f1"
    ),
    "rte": Task(
        "RTE",
        "RTE",
        ("sentence1", "sentence2"),
        "label",
        ("entailment", "not_entailment"),
        "accuracy",
    ),
    # In the package, see cramjax/demo/README.md.
    "intents": _INTENTS,
    "intents10": dataclasses.replace(
        _INTENTS, title="Intents, 10 labels a class", rows_per_class=10
    ),
    "acceptability": Task(
        "Acceptability",
        "embedded:acceptability",
        ("sentence",),
        "label",
        ("0", "1"),
        "matthews",
    ),
}


def get(names: Sequence[str]) -> dict[str, Task]:
    """Returns the named tasks.

    Raises:
      UserError: an unknown name.
    """
    for name in names:
        if name not in TASKS:
            raise UserError(
                f"config.glue.tasks: {name!r} is not one of {', '.join(TASKS)}"
            )
    return {name: TASKS[name] for name in names}

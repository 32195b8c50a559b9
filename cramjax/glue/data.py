"""From task files to rows of text with class ids, and to padded token arrays."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tokenizers import Tokenizer

from cramjax.config import GlueConfig
from cramjax.errors import UserError
from cramjax.glue import tfds_source
from cramjax.glue.tasks import (
    OF_TWO_CLASSES,
    Incomplete,
    Row,
    Scored,
    Split,
    Table,
    Task,
)
from cramjax.tokens import CLS, PAD, SEP, token_dtype

LENGTH_STEP = 32  # batches are padded to a multiple of it: few shapes, few compilations
SOME = 10  # labels named in a message


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line numbers, from 1, and lines without their ends, one at a time."""
    blank = []  # editors leave blank lines at the end
    try:
        # Not splitlines(), nor the csv module: texts may have other line breaks in
        # them. A file that is open for bytes ends its lines at line feeds alone.
        with path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                # MRPC's dev set has a byte-order mark.
                text = data.decode("utf-8-sig" if number == 1 else "utf-8")
                line = number, text.removesuffix("\n").removesuffix("\r")
                blank.append(line)
                if line[1].strip(" \r"):
                    yield from blank
                    blank.clear()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number} is not UTF-8: {error.reason}") from error


def rows_of(path: Path, split: Split) -> Iterator[Row | None]:
    """Yields the rows of a .tsv or .jsonl file; None for one that is left out.

    Raises:
      UserError: the file cannot be read, or a column is missing.
    """
    reader = _read_tsv if path.suffix == ".tsv" else _read_jsonl
    return reader(path, split)


def _read_tsv(path: Path, split: Split) -> Iterator[Row | None]:
    """Reads tab-separated columns, in which quotes are plain characters."""
    lines = ((number, line.split("\t")) for number, line in _lines(path))
    wanted = [*split.texts, *([split.label] if split.label else [])]
    names = split.header or next(lines, (1, wanted))[1]
    for name in wanted:
        if name not in names:
            raise UserError(
                f"{path} has no column {name!r}; it has {names}{split.hint(name)}"
            )
    columns = [names.index(name) for name in wanted]
    for number, values in lines:
        if split.skip_short and len(values) < len(names):
            yield None
            continue
        if len(values) != len(names):
            raise UserError(
                f"{path}:{number} has {len(values)} columns, not {len(names)}"
            )
        picked = [values[column] for column in columns]
        label = picked.pop() if split.label else None
        yield Row(number, tuple(picked), label)


def _read_jsonl(path: Path, split: Split) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {error}") from error
        try:
            records = list(split.expand(record)) if split.expand else [record]
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} does not have {error}") from error
        for record in records:
            texts = tuple(_field(record, name, where, split) for name in split.texts)
            label = split.label and _field(record, split.label, where, split)
            yield Row(number, texts, label)


def check_file(path: Path, flag: str = "") -> None:
    """Refuses a path of the user's, after its flag, that is no .tsv or .jsonl file."""
    if not path.is_file():
        raise UserError(f"{flag}{path}: there is no such file")
    if path.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"{flag}{path}: pass a .tsv with a header, or a .jsonl")


def texts_of(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yields the texts of a user's file, reading one row at a time.

    Raises:
      UserError: it cannot be read, lacks a column, or has a row without text.
    """
    for row in rows_of(path, Split((), columns, label=None)):
        _require_text(path, row)
        yield row.texts


def _require_text(path: str | Path, row: Row) -> None:
    if not any(map(str.strip, row.texts)):
        raise UserError(f"{path}:{row.line} has no text: add it, or delete the row")


def _field(record: Any, name: str, where: str, split: Split) -> str:
    """Returns a field as text; a dot in the name leads into an object."""
    value = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{where} has no {name!r}{split.hint(name)}")
        value = value[part]
    if not isinstance(value, (str, bool, int, float)):
        raise UserError(f"{where} has no text or number in {name!r}{split.hint(name)}")
    if not isinstance(value, str):
        return json.dumps(value)
    if re.search("[\ud800-\udfff]", value):
        raise UserError(f"{where} has an unpaired surrogate in {name!r}")
    return value


@dataclasses.dataclass(frozen=True)
class Rows:
    """A split as text: a tuple of texts and a label per row.

    Labels are class ids (int32) or, in a regression, numbers (float32); 0 in a test
    set.
    """

    texts: list[tuple[str, ...]]
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A split as tokens; rows are padded with <pad> (0)."""

    tokens_NxL: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, rows: slice) -> "Encoded":
        return Encoded(self.tokens_NxL[rows], self.labels_N[rows])


_Part = TypeVar("_Part", Rows, Encoded)


@dataclasses.dataclass(frozen=True)
class TaskRows(Generic[_Part]):
    """All rows of a task, as text or as tokens."""

    task: Task
    train: _Part
    dev: dict[str, _Part]  # {name of a scored set: its rows}, without missing sets
    test: dict[str, _Part]  # {name of a submission: its rows}, likewise
    labels: tuple[str, ...]  # in the order of the class ids; () = numbers
    all_train_rows: int  # in the training file
    notes: tuple[str, ...]  # what is missing or was left out, a sentence each

    @property
    def outputs(self) -> int:
        """The number of classes, or 1 for a regression."""
        return len(self.labels) or 1

    @property
    def scored(self) -> list[Scored]:
        """The dev sets that are not missing."""
        return [scored for scored in self.task.dev if scored.name in self.dev]


def load(task: Task, glue: GlueConfig) -> TaskRows[Rows]:
    """Reads all splits of a task that exist.

    Raises:
      Incomplete: the training set is missing, or all dev sets are.
      UserError: a file cannot be used; it names the file and the line.
    """
    train_table = _find(task, task.train, glue)
    dev_tables = {scored.name: _find(task, scored.split, glue) for scored in task.dev}
    if train_table is None or not any(dev_tables.values()):
        key, folder = _folder(task, glue)
        missing = task.dev[0].split if train_table else task.train
        raise Incomplete(
            task.title,
            f"{' or '.join(missing.files)} is missing",
            f"config.glue.{key} is {folder!r}: pass --config.glue.{key}=FOLDER, the "
            f"one that holds it, or leave {task.name!r} out of --config.glue.tasks",
        )
    labels = task.labels
    if not labels and not task.regression:
        labels = _labels_in(train_table, task, glue)
    notes = [
        f"{task.title}: {table.left_out:,} rows of {table.where} have too few columns "
        "and are left out"
        for table in (train_table, *dev_tables.values())
        if table and table.left_out
    ]
    notes += [
        f"{scored.title} is not scored: {scored.split.files[0]} is missing"
        for scored in task.dev
        if not dev_tables[scored.name]
    ]
    train = _rows(train_table, labels, task)
    dev = {
        name: _rows(table, labels, task) for name, table in dev_tables.items() if table
    }
    test = {}
    for name, split in task.test.items() if glue.test_sets else ():
        if table := _find(task, split, glue):
            zeros_N = np.zeros(len(table.rows), train.labels_N.dtype)
            test[name] = Rows([row.texts for row in table.rows], zeros_N)
    return TaskRows(task, train, dev, test, labels, len(train), tuple(notes))


def _folder(task: Task, glue: GlueConfig) -> tuple[str, str]:
    """Returns the key of the folder that a task's files are in, and its value."""
    folders = {
        "embedded": ("data_dir", str(resources.files("cramjax") / "demo")),
        "glue": ("data_dir", glue.data_dir),
        "superglue": ("superglue_dir", glue.superglue_dir),
        "own": ("own_dir", glue.own_dir),
    }
    return folders[task.source]


def is_from_tfds(task: Task, glue: GlueConfig) -> bool:
    """Returns whether a task is read from TFDS, not from a folder with its files.

    GLUE's tasks are if `glue.tfds_dir` is given or the folder `glue.data_dir` does not
    exist. The two are not mixed: a task that is missing in the folder is not taken from
    TFDS, which may have another copy of the benchmark.
    """
    own_files = not glue.tfds_dir and Path(glue.data_dir).expanduser().is_dir()
    return task.source == "glue" and not own_files


def _find(task: Task, split: Split, glue: GlueConfig) -> Table | None:
    """Returns a split as it is in its file, or None without a file."""
    if is_from_tfds(task, glue):
        return tfds_source.read(task, split, glue)
    for file in split.files:
        path = Path(_folder(task, glue)[1]).expanduser() / file
        if path.is_file():
            found = list(rows_of(path, split))
            rows = [row for row in found if row]
            if not rows:
                raise UserError(f"{path} has no rows")
            return Table(str(path), rows, len(found) - len(rows))
    return None


def _labels_in(table: Table, task: Task, glue: GlueConfig) -> tuple[str, ...]:
    """Returns the labels in the training rows, as many as the metric allows."""
    labels = tuple(sorted({row.label for row in table.rows if row.label.strip()}))
    two = task.dev[0].metrics[0] in OF_TWO_CLASSES
    if len(labels) < 2 or (two and len(labels) > 2):
        raise UserError(
            f"config.glue.own_metric is {glue.own_metric!r}: the training rows have "
            f"{len(labels)} labels in {glue.own_label!r} (config.glue.own_label), "
            f"and it needs {'exactly 2' if two else '2 or more'}"
        )
    return labels


def _rows(table: Table, labels: tuple[str, ...], task: Task) -> Rows:
    """Turns labels into class ids, or into numbers; refuses others."""
    if task.regression:
        dtype, of_label, allowed = np.float32, _number, "a number"
    else:
        dtype, of_label = np.int32, {label: i for i, label in enumerate(labels)}.get
        more = ", ..." if len(labels) > SOME else ""
        allowed = f"one of {', '.join(map(repr, labels[:SOME]))}{more}"
    values = []
    for row in table.rows:
        if task.source == "own":
            _require_text(table.where, row)
        values.append(of_label(row.label))
        if values[-1] is None:
            hint = task.train.hint(task.train.label)
            if hint and task.regression:
                hint += ", or another --config.glue.own_metric"
            raise UserError(
                f"{table.where}:{row.line} has the label {row.label!r}, not {allowed}"
                f"{hint}"
            )
    return Rows([row.texts for row in table.rows], np.array(values, dtype))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def subsample(rows: TaskRows[Rows], max_rows: int, seed: int) -> TaskRows[Rows]:
    """Returns the task with at most `max_rows` training rows; 0 = no limit.

    Before that, with `rows_per_class` of each class if the task limits them. The sample
    depends on the seed alone; the file's order is kept.
    """
    task, train = rows.task, rows.train
    chosen = np.arange(len(train))
    shuffled = np.random.default_rng([seed, len(chosen)]).permutation(len(chosen))
    if task.rows_per_class:
        by_class = [
            shuffled[train.labels_N[shuffled] == c][: task.rows_per_class]
            for c in range(len(rows.labels))
        ]
        chosen = np.sort(np.concatenate(by_class))
    if max_rows and len(chosen) > max_rows:
        chosen = np.sort(shuffled[np.isin(shuffled, chosen)][:max_rows])
    sample = Rows([train.texts[i] for i in chosen], train.labels_N[chosen])
    return dataclasses.replace(rows, train=sample)


def encode_all(
    rows: TaskRows[Rows], tokenizer: Tokenizer, glue: GlueConfig
) -> TaskRows[Encoded]:
    """Returns the task with tokens instead of texts."""

    def encoded(part: Rows) -> Encoded:
        return encode(part, tokenizer, glue.max_length, glue.empty_second)

    return dataclasses.replace(
        rows,
        train=encoded(rows.train),
        dev={name: encoded(part) for name, part in rows.dev.items()},
        test={name: encoded(part) for name, part in rows.test.items()},
    )


def encode(
    rows: Rows, tokenizer: Tokenizer, max_length: int, empty_second: bool = True
) -> Encoded:
    """Returns `<cls> A <sep> B <sep>` of every row (arXiv 2212.14034, section 5).

    With one text, B is empty; without `empty_second` the row is `<cls> A <sep>`, as in
    BERT (arXiv 1810.04805). With three or more texts, the last one is B, and the
    others, joined with `<sep>`, are A. Rows are truncated to `max_length` tokens,
    special ones included: the longer side first, from its right end; of two equally
    long sides A keeps the odd token.
    """
    rows_of_ids = token_rows(rows.texts, tokenizer, max_length, empty_second)
    dtype = token_dtype(tokenizer.get_vocab_size())
    tokens_NxL = np.full((len(rows), max_length), PAD, dtype)
    for tokens_L, ids in zip(tokens_NxL, rows_of_ids, strict=True):
        tokens_L[: len(ids)] = ids
    return Encoded(tokens_NxL, rows.labels_N)


def token_rows(
    texts: Sequence[tuple[str, ...]],
    tokenizer: Tokenizer,
    max_length: int,
    empty_second: bool,
) -> list[list[int]]:
    """Returns the ids of rows of texts, see `encode`."""
    columns = [
        [e.ids for e in tokenizer.encode_batch(column, add_special_tokens=False)]
        for column in map(list, zip(*texts, strict=True))
    ]
    return [
        template(ids, max_length, empty_second) for ids in zip(*columns, strict=True)
    ]


def template(
    texts: Sequence[Sequence[int]], max_length: int, empty_second: bool = True
) -> list[int]:
    """Returns one row's ids, see `encode`."""
    a, *others = texts
    if not others and not empty_second:
        return [CLS, *a[: max_length - 2], SEP]
    b = others.pop() if others else []
    for text in others:
        a = [*a, SEP, *text]
    room = max_length - 3
    # The longer side gives way until both fit, or until they are equal.
    length_a = min(len(a), max(room - len(b), room - room // 2))
    length_b = min(len(b), room - length_a)
    return [CLS, *a[:length_a], SEP, *b[:length_b], SEP]


def padded_length(tokens: np.ndarray, max_length: int) -> int:
    """Returns the longest row's length, rounded up to LENGTH_STEP.

    At most `max_length`: the model may have no more learned positions.
    """
    longest = int((tokens != PAD).sum(axis=-1).max())
    return min(-(-longest // LENGTH_STEP) * LENGTH_STEP, max_length)

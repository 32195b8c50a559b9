"""Task files to padded token arrays."""

import csv
import dataclasses
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cramjax.data import tokenizer
from cramjax.data.packing import token_dtype
from cramjax.errors import UserError
from cramjax.glue.tasks import Task


@dataclasses.dataclass(frozen=True)
class Rows:
    """A split as text: one tuple of one or two texts, and one class id, per row."""

    texts: list[tuple[str, ...]]
    labels_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A split as tokens, padded with <pad> (0) to the longest row."""

    tokens_NxL: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)


def folder(task: Task, data_dir: str) -> Path:
    """Returns the folder of a task's files.

    Raises:
      UserError: a file is missing.
    """
    if task.folder.startswith("embedded:"):
        return Path(str(resources.files("cramjax") / "demo")) / task.folder[9:]
    path = Path(data_dir).expanduser() / task.folder
    for split in ("train", "dev"):
        if not (path / f"{split}.tsv").is_file():
            raise UserError(
                f"config.glue.data_dir is {data_dir!r}: {path / split}.tsv is not "
                "there; pass the folder that holds it, or leave the task out of "
                '--config.glue.tasks ("()" stops after pretraining)'
            )
    return path


def read(task: Task, split: str, data_dir: str) -> Rows:
    """Reads the tab-separated `<split>.tsv`, in which quotes are plain characters.

    Raises:
      UserError: a missing file, column or value, or an unknown label; it names the row.
    """
    path = folder(task, data_dir) / f"{split}.tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    columns = _columns(task, lines[0] if lines else [], path)
    rows = lines[1:] if task.header else lines
    if not rows:
        raise UserError(f"{path} has no rows")
    texts, labels = [], []
    for number, row in enumerate(rows, start=1 + task.header):
        if len(row) <= max(columns):
            raise UserError(
                f"{path}:{number} has {len(row)} columns, needed are {max(columns) + 1}"
            )
        *row_texts, label = (row[column] for column in columns)
        if label not in task.labels:
            raise UserError(
                f"{path}:{number} has the label {label!r}, not one of {task.labels}"
            )
        texts.append(tuple(row_texts))
        labels.append(task.labels.index(label))
    return Rows(texts, np.asarray(labels, np.int32))


def _columns(task: Task, first_line: list[str], path: Path) -> list[int]:
    wanted = [*task.texts, task.label]
    if not task.header:
        return [int(column) for column in wanted]
    for name in wanted:
        if name not in first_line:
            raise UserError(f"{path} has no column {name!r}; it has {first_line}")
    return [first_line.index(name) for name in wanted]


def subsample(rows: Rows, task: Task, max_rows: int, seed: int) -> Rows:
    """Returns `rows_per_class` of each class if the task says so, then at most a cap.

    The sample depends on the seed alone; the file's order is kept.
    """
    chosen = np.arange(len(rows.labels_N))
    shuffled = np.random.default_rng([seed, len(chosen)]).permutation(len(chosen))
    if task.rows_per_class:
        by_class = [
            shuffled[rows.labels_N[shuffled] == c][: task.rows_per_class]
            for c in range(len(task.labels))
        ]
        chosen = np.sort(np.concatenate(by_class))
    if max_rows and len(chosen) > max_rows:
        chosen = np.sort(shuffled[np.isin(shuffled, chosen)][:max_rows])
    return Rows([rows.texts[i] for i in chosen], rows.labels_N[chosen])


def encode(rows: Rows, words: Tokenizer, max_length: int) -> Encoded:
    """Returns `<cls> A <sep> B <sep>` of every row, B empty where there is one text.

    Truncated to `max_length` with the special tokens, longest text first, from its
    right end; of two equally long ones A keeps the odd token (arXiv 2212.14034,
    section 5).
    """
    sides = []
    for side in range(2):
        texts = [t[side] if side < len(t) else "" for t in rows.texts]
        encodings = words.encode_batch(texts, add_special_tokens=False)
        sides.append([encoding.ids for encoding in encodings])
    token_rows = [
        template(a, b, max_length) for a, b in zip(sides[0], sides[1], strict=True)
    ]
    longest = max(map(len, token_rows))
    dtype = token_dtype(words.get_vocab_size())
    tokens_NxL = np.full((len(token_rows), longest), tokenizer.PAD, dtype)
    for i, row in enumerate(token_rows):
        tokens_NxL[i, : len(row)] = row
    return Encoded(tokens_NxL, rows.labels_N)


def template(a: Sequence[int], b: Sequence[int], max_length: int) -> list[int]:
    """Returns one row's ids, see `encode`."""
    room = max_length - 3
    # The longer side gives way until both fit, or until they are equal.
    length_a = min(len(a), max(room - len(b), room - room // 2))
    length_b = min(len(b), room - length_a)
    cls, sep = [tokenizer.CLS], [tokenizer.SEP]
    return [*cls, *a[:length_a], *sep, *b[:length_b], *sep]

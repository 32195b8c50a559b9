"""Labels the rows of a file with a classifier of your own.

cramjax predict --model=DIR FILE [--out=FILE.tsv]

DIR is the --workdir of `cramjax finetune`. FILE is a .tsv with a header, or a .jsonl,
with the text columns that the classifier was trained on. For each row, in order, one
line is written: the label and its probability, or the number of a regression. All rows
are checked first; then they are read and written a few at a time.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.errors import UserError
from cramjax.flags import parse_flags

ROWS = 1024  # predicted together, those of similar length in one batch


def command(argv: Sequence[str]) -> None:
    """Writes a line for each row to --out, or prints it."""
    given, rest = parse_flags(argv, {"model": "DIR"}, ["out"])
    if len(rest) != 1:
        raise UserError(
            f"{len(rest)} files: pass one, cramjax predict --model=DIR FILE"
        )
    out = files.to_be_written("out", given["out"])
    path = Path(rest[0]).expanduser()
    from cramjax.checkpoints import classifier  # imports JAX
    from cramjax.glue import data

    data.check_file(path)
    model = classifier.load(given["model"])
    for _ in data.texts_of(path, model.columns):
        pass  # raises an error before anything is written
    lines = _lines(model, data.texts_of(path, model.columns))
    if out is None:
        for line in lines:
            print(line)
        return
    with files.replacing(out) as file:
        file.writelines(f"{line}\n".encode() for line in lines)


def _lines(model: Any, texts: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Yields the lines of a .tsv, its header first."""
    line = "{}\t{:.4f}" if model.labels else "{:.6g}"
    yield "label\tprobability" if model.labels else "number"
    while rows := list(itertools.islice(texts, ROWS)):
        for found in model.predict(rows):
            yield line.format(*found) if model.labels else line.format(found)

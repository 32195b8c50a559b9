"""What is cut out of documents, as a file says: no state, so anyone may apply it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def path_of(folder: Path, unit: int) -> Path:
    """Returns where a unit's cuts are."""
    return folder / f"cuts-{unit:05d}.npy"


def load(folder: Path, unit: int) -> np.ndarray:
    """Returns cuts_Rx4: file in the unit, document in the file, start and stop.

    Start and stop are bytes of the document's UTF-8, at whole characters. Rows are
    sorted, and no two touch.
    """
    return np.load(path_of(folder, unit))


def without(
    documents: Iterator[str], cuts_Rx4: np.ndarray | None, file: int
) -> Iterator[str]:
    """Yields a file's documents without what is cut, stripped, if any text is left.

    Args:
      documents: of the file, as they are read.
      cuts_Rx4: of its unit; None for none.
      file: its number in the unit.
    """
    if cuts_Rx4 is None:
        yield from documents
        return
    first, last = np.searchsorted(cuts_Rx4[:, 0], [file, file + 1])
    cuts_Rx3 = cuts_Rx4[first:last, 1:]
    row = 0
    for number, text in enumerate(documents):
        if row == len(cuts_Rx3) or cuts_Rx3[row, 0] > number:
            yield text
            continue
        data, kept, at = text.encode(), [], 0
        while row < len(cuts_Rx3) and cuts_Rx3[row, 0] == number:
            kept.append(data[at : cuts_Rx3[row, 1]])
            at = cuts_Rx3[row, 2]
            row += 1
        kept.append(data[at:])
        # Errors: the file has changed meanwhile, of which `prepare` will say so.
        left = b"".join(kept).decode(errors="ignore").strip()
        if left:
            yield left

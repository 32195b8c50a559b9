"""Output whose reader may go: `| head`, a closed terminal, a dropped connection."""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TextIO


class Unbroken:
    """A text stream; once its reader is gone, what is written goes nowhere.

    Nobody's looking on any more is no reason to lose a run.
    """

    def __init__(self, stream: TextIO):
        """Takes the place of a stream."""
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, if there is anyone to read it."""
        with self._into_nothing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, if there is anyone to read it."""
        with self._into_nothing():
            self._stream.flush()

    @contextlib.contextmanager
    def _into_nothing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                return  # for example a full disk: there may be room for what comes next
            # Also what is still buffered goes there, when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

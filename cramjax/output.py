"""What a command prints: the package's log, on a stream whose reader may go away."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class Printer(logging.Handler):
    """Prints messages to what `sys.stdout` is at that moment.

    A live progress line takes the place of `sys.stdout`, and prints them above itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one message."""
        sys.stdout.write(self.format(record) + "\n")
        sys.stdout.flush()


def print_messages() -> None:
    """Prints what the package logs; without this only warnings are seen, on stderr."""
    logger = logging.getLogger("cramjax")
    logger.handlers = [Printer()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class Unbroken:
    """A text stream that drops what is written once its reader is gone.

    `| head`, a closed terminal or a dropped connection must not end a run.
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

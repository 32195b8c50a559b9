"""What a command prints: the package's log, to a reader that may go away."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


class Printer(logging.Handler):
    """Prints messages to the current `sys.stdout`.

    A live progress line replaces `sys.stdout`, and prints them above itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message."""
        sys.stdout.write(self.format(record) + "\n")
        sys.stdout.flush()


def print_messages() -> None:
    """Prints what the package logs; by default only warnings appear, on stderr."""
    logger = logging.getLogger("cramjax")
    logger.handlers = [Printer()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Orbax logs with tracebacks what it also raises, and `CheckpointStore` explains.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Unbroken:
    """A text stream that drops its output when its reader is gone.

    `| head`, a closed terminal or a dropped connection must not end a run.
    """

    def __init__(self, stream: TextIO):
        """Replaces a stream."""
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes if there is a reader."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flushes if there is a reader."""
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                return  # for example a full disk: there may be room for what comes next
            # What is still buffered goes there, too, when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

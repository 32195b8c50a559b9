"""The errors that a user can cause, and correct."""

import errno
import os
import textwrap


class UserError(Exception):
    """Ends the program with exit code 2 and one line, or one for each problem.

    A line names the key or file, its value, and what to do about it. Problems that can
    be seen beforehand are raised before any compute is spent.
    """


class TrainingFailed(UserError):
    """Training failed: its numbers are not finite, or the loss stays high."""


class SourceLost(UserError):
    """Text could not be read to its end for an external reason: try again."""


class DiskFault(UserError):
    """Something could not be written, for lack of room or otherwise: try again."""


class Interrupted(Exception):
    """A signal ended the run at a point from which the same command goes on."""

    def __init__(self, message: str, signal_number: int):
        """Derives the exit code from the signal."""
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: Exception) -> str:
    """Returns an error's message as one line of at most 200 characters."""
    return textwrap.shorten(str(error), 200, placeholder=" ...")


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether XLA's error reports that the device has too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def is_disk_full(error: Exception) -> bool:
    """Returns whether a file could not be written for lack of room."""
    return disk_fault(error) in map(os.strerror, (errno.ENOSPC, errno.EDQUOT))


def disk_fault(error: Exception) -> str | None:
    """Returns the system's words for a disk's fault, which libraries' errors quote."""
    numbers = errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE
    return next((x for x in map(os.strerror, numbers) if x in str(error)), None)

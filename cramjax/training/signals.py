"""Signals as news, not as the end."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP while the block runs, instead of dying.

    A terminal that is closed sends the last one; `nohup` has it ignored, and so it is.
    """
    received: list[int] = []

    def note(number, frame):
        del frame
        received.append(number)
        # Not `print`: it may be what was interrupted. And nobody may be there to see.
        with contextlib.suppress(OSError):
            line = f"{signal.Signals(number).name}: stopping ...\n"
            os.write(2, line.encode())

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

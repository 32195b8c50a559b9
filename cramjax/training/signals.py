"""Signals as news, not as the end."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM while the block runs, instead of dying of them."""
    received: list[int] = []

    def note(number, frame):
        del frame
        received.append(number)
        print(f"{signal.Signals(number).name}: saving after this step ...", flush=True)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The whole job, from raw text to fine-tuned scores, and its commands.

cramjax --config=a4000 [--workdir=FOLDER] [--config.KEY=VALUE ...]

The run writes to --workdir, by default runs/ and the name of the config:
runs/a4000. The same command, run again, continues where it ended.
--config takes a file or the name of one in configs/: quickstart, small, a4000,
a6000, rtx2080ti, h200, best:CARD, data/NAME:CARD or ablations/NAME:ROW. Any key
of the config can be overridden: --config.budget.hours=0.5
--print_config prints every key with its value, and exits.
--rehearse tries every stage for a moment and estimates what the budget buys.
On several GPUs, start one process for each, with the same command and
--coordinator=HOST:PORT --processes=N --process=I, or --coordinator=slurm.

Parts of the job, and more; `cramjax COMMAND --help` says how to call each:
  prepare    builds a corpus, without training
  evaluate   fine-tunes on GLUE or your own task and scores, without pretraining
  finetune   trains a classifier on your own labelled text, and saves it
  predict    labels new text with such a classifier
  export     writes a model in the format of Hugging Face's transformers
  describe   counts a config's parameters, FLOPs and memory
  plan       finds whether a config fits a card, and how fast it trains there
  study      compares configs over seeds
  report     writes a finished run's report anew, or compares several runs
"""

import contextlib
import difflib
import functools
import importlib
import json
import logging
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cramjax import commands
from cramjax.config import to_dict
from cramjax.device import host_memory
from cramjax.errors import Interrupted, UserError, disk_fault, is_disk_full, one_line
from cramjax.flags import parse_command_line
from cramjax.output import Unbroken, print_messages

logger = logging.getLogger("cramjax.main")

PROCESSES = ("coordinator", "processes", "process")  # flags for several GPUs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job, or a command, with the given or the program's arguments.

    Returns the exit code.
    """
    started_at = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in command_names():
        module = importlib.import_module(f"{commands.__name__}.{argv[0]}")
        return guarded(module.command, argv[1:], module.__doc__)
    return guarded(functools.partial(_job, started_at), argv, __doc__)


def _job(started_at: float, argv: Sequence[str]) -> None:
    if argv and not argv[0].startswith("-"):
        names = command_names()
        near = difflib.get_close_matches(argv[0], names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"pass {', '.join(names)}"
        raise UserError(f"{argv[0]}: no such command; {hint}")
    config, extras = parse_command_line(
        argv, ["workdir", *PROCESSES], switches=["print_config", "rehearse"]
    )
    if extras["print_config"]:
        print(json.dumps(to_dict(config), indent=1))
        return
    workdir = Path(extras["workdir"] or default_workdir(extras["config"]))
    logger.info(f"workdir: {workdir}")
    # Imported here because they import JAX: a mistyped flag is reported at once.
    if extras["rehearse"]:
        if given := [name for name in PROCESSES if extras[name]]:
            raise UserError(f"--{given[0]}: leave it out; a rehearsal is one process")
        from cramjax.rehearsal import rehearse

        rehearse(config, workdir)
        return
    with signals_held():
        from cramjax.device import distributed

    distributed.join(*(extras[name] for name in PROCESSES))
    with signals_held():
        from cramjax.run import run

    run(config, workdir, started_at)


def command_names() -> list[str]:
    """Returns the names of the commands: the modules of `cramjax.commands`."""
    return [module.name for module in pkgutil.iter_modules(commands.__path__)]


def default_workdir(config: str) -> Path:
    """Returns runs/NAME, or runs/NAME-ROW, of a --config=FOLDER/NAME.py:ROW."""
    file, _, row = config.partition(":")
    return Path("runs", "-".join(filter(None, (Path(file).stem, row))))


def guarded(
    command: Callable[[Sequence[str]], Any], argv: Sequence[str], usage: str
) -> int:
    """Runs a command and returns its exit code; prints `usage` if it is asked for.

    Sets up logging, memory, signals and streams. An error that ends the command is
    reported on stderr. The code is 2 for a user's mistakes, with a line for each, and
    128 plus its number for a signal.
    """
    if {"-h", "--help"} & set(argv):
        print(usage.strip(), file=Unbroken(sys.stdout), flush=True)
        return 0
    print_messages()
    host_memory.keep_freed()
    received: list[int] = []
    handler = functools.partial(_interrupt, received)
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_repeat, received, hook)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Unbroken, streams)
    try:
        command(argv)
        return 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError) as error:
        if not (disk_fault(error) or getattr(error, "filename", None)):
            raise
        hint = "make room" if is_disk_full(error) else "fix the cause"
        hint += ", and the same command goes on with what is complete"
        print(f"error: {one_line(error)}: {hint}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ImportError):
        if not received:
            raise
        # A compiled module that is interrupted while it is imported raises the latter.
        print("interrupted: what was complete is kept", file=sys.stderr)
        return 128 + received[-1]
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = streams
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Lets signals wait: compiled modules answer one with tracebacks while imported."""
    held = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


def _interrupt(received: list[int], number: int, frame: Any) -> None:
    """Raises KeyboardInterrupt; a second signal ends the process at once.

    Raised again, it could make Python forget a thread that it waits for, and crash.
    """
    del frame
    received.append(number)
    if len(received) > 1:
        if sys.__stdout__.isatty():
            os.write(1, b"\x1b[?25h\n")  # the cursor, which a progress line hides
        os._exit(128 + number)
    raise KeyboardInterrupt(number)


def _repeat(received: list[int], hook: Callable[[Any], None], ignored: Any) -> None:
    """Repeats a signal that came where Python ignores exceptions: in a callback."""
    if not (received and isinstance(ignored.exc_value, KeyboardInterrupt)):
        return hook(ignored)
    again = threading.Timer(0.01, os.kill, (os.getpid(), received.pop()))
    again.start()  # after the hook, in which it would be ignored, too


if __name__ == "__main__":
    sys.exit(main())

"""python -m cramjax.main --config=configs/quickstart.py --workdir=runs/quickstart.

Any key of the config can be overridden: --config.budget.hours=0.5
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cramjax.config import parse_command_line
from cramjax.errors import Interrupted, UserError


def main(argv: Sequence[str]) -> int:
    """Runs the job; returns the exit code."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    try:
        config, extras = parse_command_line(argv, [("workdir", "folder of the run")])
        if not extras["workdir"]:
            raise UserError("no workdir: pass e.g. --workdir=runs/quickstart")
        from cramjax.run import run  # imports JAX: a mistyped flag need not wait for it

        run(config, Path(extras["workdir"]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: what was complete is kept", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _terminate(number, frame):
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

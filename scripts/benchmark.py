"""Checks the training step's numbers, then measures speed, beside PyTorch's.

python scripts/benchmark.py --config=configs/h200.py [--json=FILE] [--minutes=8]

Tokens/s, MFU, memory, compilation and energy of the training step for every attention
and several micro-batches; reading; the host's loop; fine-tuning trials in one program;
where torch is installed, the speed over PyTorch's. Ctrl-C shows what was measured.
"""

import os
import sys
from collections.abc import Sequence

from cramjax import files
from cramjax.config.key import above
from cramjax.flags import number, parse_command_line
from cramjax.main import guarded


def measure(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes the numbers to --json."""
    config, extras = parse_command_line(argv, ["json", "minutes"])
    minutes = number(extras, "minutes", 8.0, above(0))
    path = files.to_be_written("json", extras["json"])
    # Leaves some of the card's memory to PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from bench import report, suite  # imports JAX, which reads that variable

    facts = suite.measure(config, minutes)
    print("\n".join(["", *report.lines(facts)]))
    if path:
        files.write_json(path, facts)
    if facts["interrupted"]:
        raise KeyboardInterrupt(facts["interrupted"])


if __name__ == "__main__":
    sys.exit(guarded(measure, sys.argv[1:], __doc__))

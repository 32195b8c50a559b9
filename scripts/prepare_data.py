"""Builds a config's packed corpus, unless it exists already, without training.

python scripts/prepare_data.py --config=configs/a4000.py --config.data.sources=...
"""

import sys
from collections.abc import Sequence

from cramjax.data.prepare import prepare
from cramjax.flags import parse_command_line
from cramjax.main import guarded


def build(argv: Sequence[str]) -> None:
    """Builds the corpus of the config."""
    config, _ = parse_command_line(argv)
    prepare(config)


if __name__ == "__main__":
    sys.exit(guarded(build, sys.argv[1:], __doc__))

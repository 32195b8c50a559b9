"""Builds a config's packed corpus, unless it exists already, without training.

cramjax prepare --config=configs/a4000.py --config.data.sources=...
"""

from collections.abc import Sequence

from cramjax.data.prepare import prepare
from cramjax.flags import parse_command_line


def command(argv: Sequence[str]) -> None:
    """Builds the corpus of the config."""
    config, _ = parse_command_line(argv)
    # Imported here because it imports JAX, which the processes that encode, started
    # from this module, do not need.
    from cramjax.checkpoints import initial

    config, _ = initial.begin(config)
    prepare(config)

"""Writes report.md and its figures anew, from what a finished run has written.

cramjax report --workdir=DIR
"""

from collections.abc import Sequence
from pathlib import Path

from cramjax.errors import UserError
from cramjax.flags import parse_flags


def command(argv: Sequence[str]) -> None:
    """Writes the report of a workdir."""
    given, rest = parse_flags(argv, {"workdir": "DIR"})
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: see --help")
    from cramjax.run import report_again  # imports JAX

    report_again(Path(given["workdir"]))

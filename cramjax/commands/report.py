"""Writes the report of a finished run anew, or a comparison of several runs.

cramjax report --workdir=DIR
cramjax report DIR DIR ... [--out=compare.html]

The first writes report.md, report.html and the figures into DIR. The second
writes one page: settings that differ, losses, scores with paired differences
from the first run.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from cramjax import files
from cramjax.errors import UserError
from cramjax.flags import parse_flags

logger = logging.getLogger(__name__)


def command(argv: Sequence[str]) -> None:
    """Writes the report of a workdir, or compares several."""
    given, rest = parse_flags(argv, {}, optional=("workdir", "out"))
    named = [Path(name) for name in (given["workdir"], *rest) if name]
    workdirs = [*{path.absolute(): path for path in named}.values()]
    if not workdirs:
        raise UserError("no workdir: pass --workdir=DIR, or two or more to compare")
    name = given["out"] or ("compare.html" if len(workdirs) > 1 else "")
    out = files.to_be_written("out", name)
    from cramjax import compare, run  # imports JAX

    if out:
        compare.write(workdirs, out)
        logger.info(f"comparison: {out}")
        return
    found = compare.read(workdirs[0])
    with run.lock_workdir(found.workdir):
        run.write_report(found)

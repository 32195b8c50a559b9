"""Writes report.md and its figures anew, from what a finished run has written.

cramjax report --workdir=DIR
"""

from collections.abc import Sequence
from pathlib import Path

from cramjax import config, files
from cramjax.errors import UserError
from cramjax.flags import parse_flags


def command(argv: Sequence[str]) -> None:
    """Writes the report of a workdir."""
    given, rest = parse_flags(argv, {"workdir": "DIR"})
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: see --help")
    from cramjax import run  # imports JAX
    from cramjax.glue import evaluate

    workdir, hint = Path(given["workdir"]), "pass the workdir of a finished run"
    summary = files.read_json(workdir / run.SUMMARY, hint)
    manifest = files.read_json(workdir / run.CORPUS, run.FROM_THE_CORPUS)
    recorded = config.from_dict(config.read_recorded(workdir / run.CONFIG, hint))
    results = evaluate.read_results(workdir / evaluate.RESULTS)
    with run.lock_workdir(workdir):
        run.write_report(recorded, manifest, summary, results, workdir)

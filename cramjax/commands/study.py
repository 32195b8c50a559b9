"""Compares variants of a config over seeds: mean, spread and paired differences.

cramjax study --study=studies/small --workdir=runs/study [--at_once=2]
    [--config.KEY=VALUE ...]

--study is a file, or the name of one in configs/. --config.KEY=VALUE changes a key in
every row that does not set it itself. --at_once=2 trains two runs at a time, each on
one core. The same command continues a stopped study. The table is study.md in the
workdir.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cramjax.errors import UserError
from cramjax.flags import parse_flags, whole


def command(argv: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    needed = {"study": "FILE", "workdir": "FOLDER"}
    given, rest = parse_flags(argv, needed, ["at_once"])
    at_once = whole(given, "at_once", 1)
    for argument in rest:
        if not argument.startswith("--config."):
            raise UserError(
                f"unexpected argument {argument!r}: pass --study, --workdir and "
                "--config.key=value"
            )
    from cramjax.study import load_study, page  # imports JAX
    from cramjax.study_runs import run_study

    study = load_study(given["study"])
    study = dataclasses.replace(study, overrides=(*study.overrides, *rest))
    print(page(study, run_study(study, Path(given["workdir"]), at_once)))

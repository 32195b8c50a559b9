"""Compares rows over seeds under one budget: mean, spread and paired differences.

cramjax study --study=configs/studies/quickstart.py --workdir=runs/study

--config.KEY=VALUE changes a key in every row. The same command continues a stopped
study. study.md in the workdir is the table.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cramjax.errors import UserError
from cramjax.flags import parse_flags


def command(argv: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    needed = {"study": "FILE", "workdir": "FOLDER"}
    given, rest = parse_flags(argv, needed)
    for argument in rest:
        if not argument.startswith("--config."):
            raise UserError(
                f"unexpected argument {argument!r}: pass --study, --workdir and "
                "--config.key=value"
            )
    from cramjax.study import load_study, run_study, table

    study = load_study(Path(given["study"]))
    study = dataclasses.replace(study, overrides=(*study.overrides, *rest))
    print(table(study, run_study(study, Path(given["workdir"]))))

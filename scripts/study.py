"""Compares rows over seeds under one budget: mean, spread and paired differences.

python scripts/study.py --study=configs/studies/quickstart.py --workdir=runs/study

--config.KEY=VALUE changes a key in every row. Stopped and started again it goes on
where it was; study.md in the workdir is the table.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from cramjax.errors import UserError
from cramjax.main import guarded


def compare(argv: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    values = flags.FlagValues()
    for name in ("study", "workdir"):
        flags.DEFINE_string(name, "", name, flag_values=values)
    try:
        rest = values(["study", *argv], known_only=True)[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    for name in ("study", "workdir"):
        if not values[name].value:
            raise UserError(f"no {name}: pass --study=FILE and --workdir=FOLDER")
    for argument in rest:
        if not argument.startswith("--config."):
            raise UserError(
                f"unexpected argument {argument!r}: pass --study, --workdir and "
                "--config.key=value"
            )
    from cramjax.study import load_study, run_study, table

    study = load_study(Path(values["study"].value))
    study = dataclasses.replace(study, overrides=(*study.overrides, *rest))
    print(table(study, run_study(study, Path(values["workdir"].value))))


if __name__ == "__main__":
    sys.exit(guarded(compare, sys.argv[1:], __doc__))

"""Compares rows over seeds under one budget: mean, spread and paired differences.

python scripts/study.py --study=configs/studies/recipe.py --workdir=runs/recipe

Stopped and started again it goes on where it was; study.md in the workdir is the table.
"""

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
        rest = values(["study", *argv])[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    for name in ("study", "workdir"):
        if not values[name].value:
            raise UserError(f"no {name}: pass --study=FILE and --workdir=FOLDER")
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --key=value")
    from cramjax.study import load_study, run_study, table

    study = load_study(Path(values["study"].value))
    print(table(study, run_study(study, Path(values["workdir"].value))))


if __name__ == "__main__":
    sys.exit(guarded(compare, sys.argv[1:], __doc__))

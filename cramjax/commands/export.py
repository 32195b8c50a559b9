"""Writes a model in the format of Hugging Face's transformers, version 5 or newer.

cramjax export --checkpoint=DIR --to=FOLDER [--weights=ema]

DIR is the workdir of a finished run, or a classifier that `cramjax finetune` has saved.
FOLDER gets the weights, the tokenizer, a model card and what sentence-transformers
needs; it must be empty or new. --weights takes an average that was on in the run: ema
or lawa. If torch and transformers 5 are installed, logits are compared with ours.
"""

from collections.abc import Sequence

from cramjax.errors import UserError
from cramjax.flags import parse_flags


def command(argv: Sequence[str]) -> None:
    """Exports what the flags name, and prints how to load it."""
    needed = {"checkpoint": "runs/mine", "to": "exports/mine"}
    flags, rest = parse_flags(argv, needed, ["weights"])
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: see --help")
    from cramjax.checkpoints import export  # imports JAX, which takes seconds

    weights = flags["weights"] or export.PRETRAINED
    name, difference = export.export(flags["checkpoint"], flags["to"], weights)
    code = ", for trust_remote_code=True" if export.has_code(name) else ""
    print(f"{flags['to']}: {name}{code}")
    if difference is None:
        print("logits not compared with ours: torch and transformers 5 are missing")
    else:
        print(f"logits in torch differ from ours by at most {difference:.1e}")

"""Writes a model in the format of Hugging Face's transformers, version 5 or newer.

cramjax export --checkpoint=DIR --to=FOLDER [--weights=ema]

DIR is the workdir of a finished run, or a classifier that `cramjax finetune` has saved.
FOLDER gets the weights, the tokenizer, a model card and what sentence-transformers
needs; it must be empty or new. --weights takes an average that was on in the run (ema
or lawa). If torch and transformers are installed (pip install "cramjax[interop]"), the
exported model's logits are compared with ours before anything stays on disk.
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
    from cramjax.checkpoints import export  # imports JAX: --help need not wait for it

    weights = flags["weights"] or export.PRETRAINED
    exported = export.export(flags["checkpoint"], flags["to"], weights)
    code = ", with its own code: pass trust_remote_code=True" if exported.code else ""
    print(f"{flags['to']}: a {exported.architecture}{code}")
    if exported.difference is None:
        print(
            "its logits were not compared with ours, which needs torch and "
            'transformers 5: pip install "cramjax[interop]"'
        )
    else:
        print(f"its logits in torch differ from ours by {exported.difference:.1e}")

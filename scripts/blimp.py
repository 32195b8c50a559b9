"""Zero-shot grammar: how often a model prefers the right sentence of a pair.

python scripts/blimp.py --checkpoint=DIR --data=blimp [--max_pairs=100] [--json=FILE]

DIR is the workdir of a finished run, or a folder with a checkpoint of Hugging Face's
BERT or ModernBERT. --data is the folder with the 67 .jsonl files of BLiMP (Warstadt et
al. 2020, arXiv 1912.00582). Chance is 50. Sentences that are longer than the model's
sequences are cut, with a warning that says how many.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cramjax import files
from cramjax.errors import UserError
from cramjax.flags import parse_flags
from cramjax.main import guarded


def score(argv: Sequence[str]) -> None:
    """Prints the accuracy of every phenomenon and the mean of the paradigms."""
    needed = {"checkpoint": "DIR", "data": "FOLDER"}
    optional = {"max_pairs": "of each paradigm", "json": "file to write"}
    given, rest = parse_flags(argv, needed, optional)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: see --help")
    if not (given["max_pairs"] or "0").isdigit():
        raise UserError(f"--max_pairs={given['max_pairs']}: must be a number, 0 = all")
    path = files.to_be_written("json", given["json"])
    from cramjax import blimp  # imports JAX
    from cramjax.checkpoints.load import load

    paradigms = blimp.read(Path(given["data"]))
    model = load(given["checkpoint"])
    results = blimp.score(model, paradigms, int(given["max_pairs"] or 0))
    for name, percent in results["phenomena"].items():
        print(f"{name:40}{percent:6.1f}")
    last = f"mean of {len(paradigms)} paradigms"
    print(f"{last:40}{results['total']:6.1f}")
    if path:
        files.write_json(path, results)


if __name__ == "__main__":
    sys.exit(guarded(score, sys.argv[1:], __doc__))

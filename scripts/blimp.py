"""Zero-shot grammar: how often a model prefers the grammatical sentence of a pair.

python scripts/blimp.py --checkpoint=DIR --data=blimp [--max_pairs=100] [--json=FILE]

DIR is the workdir of a finished run, or a folder with a checkpoint of Hugging Face's
BERT or ModernBERT. --data is the folder with the 67 .jsonl files of BLiMP (Warstadt et
al. 2020, arXiv 1912.00582). Chance is 50. Sentences longer than the model's sequences
are cut, and a warning reports how many.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cramjax import files
from cramjax.config.key import at_least
from cramjax.errors import UserError
from cramjax.flags import number, parse_flags
from cramjax.main import guarded


def score(argv: Sequence[str]) -> None:
    """Prints the accuracy of every phenomenon and the mean of the paradigms."""
    needed = {"checkpoint": "DIR", "data": "FOLDER"}
    given, rest = parse_flags(argv, needed, ["max_pairs", "json"])
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: see --help")
    max_pairs = int(number(given, "max_pairs", 0, at_least(0, "0 = all")))
    path = files.to_be_written("json", given["json"])
    from cramjax import blimp  # imports JAX
    from cramjax.checkpoints.load import load

    paradigms = blimp.read(Path(given["data"]))
    model = load(given["checkpoint"])
    results = blimp.score(model, paradigms, max_pairs)
    for name, percent in results["phenomena"].items():
        print(f"{name:40}{percent:6.1f}")
    last = f"mean of {len(paradigms)} paradigms"
    print(f"{last:40}{results['total']:6.1f}")
    if path:
        files.write_json(path, results)


if __name__ == "__main__":
    sys.exit(guarded(score, sys.argv[1:], __doc__))

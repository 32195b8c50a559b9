"""Zero-shot grammar: how often a model prefers the grammatical sentence of a pair.

python scripts/blimp.py --checkpoint=DIR --data=blimp [--max_pairs=100] [--json=FILE]

DIR is the workdir of a finished run, or a folder with a checkpoint of Hugging Face's
BERT or ModernBERT. --data is the folder with the 67 .jsonl files of BLiMP (Warstadt et
al. 2020, arXiv 1912.00582). Chance is 50. Sentences longer than the model's sequences
are cut, and a warning reports how many. Without --max_pairs all pairs are scored.
"""

import collections
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cramjax import files
from cramjax.errors import UserError
from cramjax.flags import parse_flags, whole
from cramjax.glue.data import rows_of
from cramjax.glue.tasks import Split
from cramjax.main import guarded

PAIR = Split((), ("sentence_good", "sentence_bad"), "linguistics_term")


class Paradigm(NamedTuple):
    """Minimal pairs of one kind, for example "wh_island" of "island_effects"."""

    name: str
    phenomenon: str
    pairs: list[tuple[str, str]]  # (acceptable, unacceptable) sentences


def read(folder: Path) -> list[Paradigm]:
    """Reads BLiMP's `*.jsonl`, a file for each paradigm.

    Raises:
      UserError: the folder has none, or a line lacks a sentence or the phenomenon, in
        BLiMP's columns.
    """
    paradigms = []
    for path in sorted(folder.expanduser().glob("*.jsonl")):
        if rows := [row for row in rows_of(path, PAIR) if row]:
            pairs = [row.texts for row in rows]
            paradigms.append(Paradigm(path.stem, rows[-1].label, pairs))
    if not paradigms:
        raise UserError(
            f"{folder} has no .jsonl file: pass the folder of BLiMP's paradigms"
        )
    return paradigms


def score(model: Any, paradigms: list[Paradigm], max_pairs: int = 0) -> dict[str, Any]:
    """Counts how often the acceptable sentence is more likely than the other one.

    Likelihood is the pseudo-log-likelihood, see `Pretrained.pseudo_log_likelihoods`; a
    tie counts half. Only the first `max_pairs` of each paradigm are scored; 0 = all.

    Returns:
      {"total" (mean of the paradigms, in percent; 50 is chance), "phenomena" ({name:
      mean of its paradigms}), "paradigms" ({name: percent}), "pairs" (scored)}
    """
    from cramjax.likelihood import percent_preferred  # imports JAX

    percents: dict[str, float] = {}
    by_phenomenon = collections.defaultdict(list)
    pairs = 0
    for paradigm in paradigms:
        chosen = paradigm.pairs[: max_pairs or None]
        scores_N = model.pseudo_log_likelihoods([s for pair in chosen for s in pair])
        percents[paradigm.name] = percent_preferred(scores_N)
        by_phenomenon[paradigm.phenomenon].append(percents[paradigm.name])
        pairs += len(chosen)
        print(f"{paradigm.name}: {percents[paradigm.name]:.1f}")
    return {
        "total": float(np.mean([*percents.values()])),
        "phenomena": {name: float(np.mean(of)) for name, of in by_phenomenon.items()},
        "paradigms": percents,
        "pairs": pairs,
    }


def command(argv: Sequence[str]) -> None:
    """Prints the accuracy of every phenomenon and the mean of the paradigms."""
    needed = {"checkpoint": "DIR", "data": "FOLDER"}
    given, rest = parse_flags(argv, needed, ["max_pairs", "json"])
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: see --help")
    max_pairs = whole(given, "max_pairs", 0)
    path = files.to_be_written("json", given["json"])
    from cramjax.checkpoints.load import load  # imports JAX

    paradigms = read(Path(given["data"]))
    results = score(load(given["checkpoint"]), paradigms, max_pairs)
    for name, percent in results["phenomena"].items():
        print(f"{name:40}{percent:6.1f}")
    last = f"mean of {len(paradigms)} paradigms"
    print(f"{last:40}{results['total']:6.1f}")
    if path:
        files.write_json(path, results)


if __name__ == "__main__":
    sys.exit(guarded(command, sys.argv[1:], __doc__))

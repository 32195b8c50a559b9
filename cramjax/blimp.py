"""Zero-shot grammar: BLiMP (Warstadt et al. 2020, arXiv 1912.00582)."""

import collections
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cramjax.checkpoints.load import Pretrained
from cramjax.errors import UserError
from cramjax.likelihood import percent_preferred

logger = logging.getLogger(__name__)


class Paradigm(NamedTuple):
    """Minimal pairs of one kind, for example "wh_island" of "island_effects"."""

    name: str
    phenomenon: str
    pairs: list[tuple[str, str]]  # (acceptable, unacceptable) sentences


def read(folder: Path) -> list[Paradigm]:
    """Reads BLiMP's `*.jsonl`, a file for each paradigm.

    Raises:
      UserError: the folder has none, or a line has no pair.
    """
    paradigms = []
    for path in sorted(folder.expanduser().glob("*.jsonl")):
        pairs, phenomenon = [], "other"
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                pairs.append((record["sentence_good"], record["sentence_bad"]))
                phenomenon = record.get("linguistics_term", "other")
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"{path}:{number} is not a pair of BLiMP ({error!r})"
                ) from error
        if pairs:
            paradigms.append(Paradigm(path.stem, phenomenon, pairs))
    if not paradigms:
        raise UserError(
            f"{folder} has no .jsonl file: pass the folder of BLiMP's paradigms"
        )
    return paradigms


def score(
    model: Pretrained, paradigms: list[Paradigm], max_pairs: int = 0
) -> dict[str, Any]:
    """Counts how often the acceptable sentence is more likely than the other one.

    Likelihood is the pseudo-log-likelihood, see `Pretrained.pseudo_log_likelihoods`; a
    tie counts half. Only the first `max_pairs` of each paradigm are scored; 0 = all.

    Returns:
      {"total" (mean of the paradigms, in percent; 50 is chance), "phenomena" ({name:
      mean of its paradigms}), "paradigms" ({name: percent}), "pairs" (scored)}
    """
    percents: dict[str, float] = {}
    by_phenomenon = collections.defaultdict(list)
    pairs = 0
    for paradigm in paradigms:
        chosen = paradigm.pairs[: max_pairs or None]
        scores_N = model.pseudo_log_likelihoods([s for pair in chosen for s in pair])
        percents[paradigm.name] = percent_preferred(scores_N)
        by_phenomenon[paradigm.phenomenon].append(percents[paradigm.name])
        pairs += len(chosen)
        logger.info(f"{paradigm.name}: {percents[paradigm.name]:.1f}")
    return {
        "total": float(np.mean([*percents.values()])),
        "phenomena": {name: float(np.mean(of)) for name, of in by_phenomenon.items()},
        "paradigms": percents,
        "pairs": pairs,
    }

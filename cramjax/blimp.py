"""Zero-shot grammar: BLiMP (Warstadt et al. 2020, arXiv 1912.00582)."""

import collections
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from cramjax.checkpoints.load import Pretrained
from cramjax.errors import UserError
from cramjax.likelihood import percent_preferred

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Paradigm:
    """Minimal pairs of one kind.

    Attributes:
      name: e.g. "wh_island".
      phenomenon: the group it belongs to, e.g. "island_effects".
      pairs: (acceptable, unacceptable) sentences.
    """

    name: str
    phenomenon: str
    pairs: list[tuple[str, str]]


def read(folder: Path) -> list[Paradigm]:
    """Reads BLiMP's `*.jsonl`, a file for each paradigm.

    Raises:
      UserError: the folder has none, or a line lacks a field.
    """
    paths = sorted(folder.expanduser().glob("*.jsonl"))
    if not paths:
        raise UserError(
            f"{folder} has no .jsonl file: pass the folder of BLiMP's paradigms"
        )
    return [_paradigm(path) for path in paths]


def _paradigm(path: Path) -> Paradigm:
    pairs, phenomenon = [], ""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                pairs.append((record["sentence_good"], record["sentence_bad"]))
                phenomenon = record.get("linguistics_term", "other")
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"{path}:{number} is not a pair of BLiMP ({error!r})"
                ) from error
    if not pairs:
        raise UserError(f"{path} is empty")
    return Paradigm(path.stem, phenomenon, pairs)


def score(
    model: Pretrained,
    paradigms: list[Paradigm],
    max_pairs: int = 0,
) -> dict[str, Any]:
    """Counts how often the acceptable sentence is more likely than the other one.

    Likelihood is the pseudo-log-likelihood, see
    `Pretrained.pseudo_log_likelihoods`; a tie counts half.

    Args:
      model: with a masked-LM head.
      paradigms: as `read` returns them.
      max_pairs: of each paradigm, the first ones; 0 = all.

    Returns:
      {"total" (mean of the paradigms, in percent; 50 is chance), "phenomena" ({name:
      mean of its paradigms}), "paradigms" ({name: percent}), "pairs" (scored)}
    """
    paradigm_scores: dict[str, float] = {}
    by_phenomenon = collections.defaultdict(list)
    pairs = 0
    for paradigm in paradigms:
        chosen = paradigm.pairs[: max_pairs or None]
        scores_N = model.pseudo_log_likelihoods([s for pair in chosen for s in pair])
        percent = percent_preferred(scores_N)
        paradigm_scores[paradigm.name] = percent
        by_phenomenon[paradigm.phenomenon].append(percent)
        pairs += len(chosen)
        logger.info(f"{paradigm.name}: {percent:.1f}")
    return {
        "total": float(np.mean(list(paradigm_scores.values()))),
        "phenomena": {
            name: float(np.mean(values)) for name, values in by_phenomenon.items()
        },
        "paradigms": paradigm_scores,
        "pairs": pairs,
    }

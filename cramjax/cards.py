"""Graphics cards: what MFU is a share of, and what has to fit."""

import re
from typing import NamedTuple


class Card(NamedTuple):
    """One card.

    Attributes:
      title: its name.
      peak_tflops: dense 16-bit products with float32 sums, 10^12 FLOP/s.
      memory_gb: 10^9 bytes.
    """

    title: str
    peak_tflops: float
    memory_gb: float


# Peaks of the first three: arXiv 2212.14034, table 1. The one of the A4000 is the
# authors' estimate; half of the data sheet's figure for sparse products is 76.7.
CARDS = {
    "rtx2080ti": Card("RTX 2080 Ti", 53.8, 11),
    "a4000": Card("RTX A4000", 88.45, 16),
    "a6000": Card("RTX A6000", 154.8, 48),
    "h200": Card("H200", 989.0, 141),
}

# Words of a device's name that say that it is slower than the card of that name.
LESSER = {"laptop", "max", "mig", "nvl", "pcie", "d"}


def of_device(device_kind: str) -> Card | None:
    """Returns the card that JAX calls `device_kind`, None if it is none of `CARDS`.

    All words of its title are in the name: "NVIDIA A100-SXM4-80GB" is an A100 80GB.
    """
    words = set(re.split(r"[\s-]+", device_kind.lower()))
    if LESSER & words:
        return None
    found = (c for c in CARDS.values() if set(c.title.lower().split()) <= words)
    return next(found, None)

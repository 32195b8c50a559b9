"""Micro-batches to choose from, and the search for the largest one that fits."""

import bisect
import math
from collections.abc import Callable, Sequence

# More rows than `batch.sequences` that an update may have, where the micro-batch does
# not divide it.
MAX_ROUNDING = 0.02
FIRST = 64  # sequences; of which the need is asked for first


def sizes(sequences: int) -> list[int]:
    """Returns the micro-batches for batches of so many sequences, in ascending order.

    Powers of two and halves more, of which a whole number makes up the batch, or nearly
    so.
    """
    powers = [2**n for n in range(sequences.bit_length())]
    candidates = {sequences, *powers, *(3 * power // 2 for power in powers[1:])}
    return sorted(
        rows
        for rows in candidates
        if rows <= sequences
        and -(-sequences // rows) * rows <= (1 + MAX_ROUNDING) * sequences
    )


def largest_first(
    ladder: Sequence[int],
    limit_bytes: float,
    need_bytes: Callable[[int], float],
    *,
    fixed_bytes: float,
    first: int = FIRST,
) -> list[int]:
    """Returns the sizes that fit, largest first.

    Needs are asked for as seldom as possible, each takes a compilation: they rise about
    in a straight line from `fixed_bytes`, so each answer says where to look next.

    Args:
      ladder: sizes, ascending.
      limit_bytes: what there is.
      need_bytes: of a size, rising; inf: more than there is, not known how much.
      fixed_bytes: what the smallest size would need, about.
      first: where to begin.
    """
    low, high = 0, len(ladder)  # ladder[:low] fit, ladder[high:] do not
    index = max(bisect.bisect_right(ladder, first) - 1, 0)
    while low < high:
        need = need_bytes(ladder[index])
        if need <= limit_bytes:
            low = index + 1
        else:
            high = index
        if math.isinf(need):
            index = (low + high) // 2
            continue
        per_sequence = max(need - fixed_bytes, 1) / ladder[index]
        room = (limit_bytes - fixed_bytes) / per_sequence
        index = bisect.bisect_right(ladder, room) - 1
        index = min(max(index, low), high - 1)
    return list(reversed(ladder[:low]))

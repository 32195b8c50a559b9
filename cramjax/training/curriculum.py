"""The sequence-length curriculum: short sequences first, in stages over the budget."""

import numpy as np

from cramjax.config import CurriculumConfig


def sequence_length(
    progress: float, curriculum: CurriculumConfig, block_length: int
) -> int:
    """Returns the tokens of a sequence at this share of the budget.

    Stage i begins when the share is above `starts[i]`; the first one holds before that,
    too. Without stages it is the block's length.
    """
    lengths = curriculum.lengths or (block_length,)
    begun = sum(progress > start for start in curriculum.starts)
    return lengths[max(begun - 1, 0)]


def cut(blocks_BxL: np.ndarray, length: int, unfold: bool) -> np.ndarray:
    """Returns sequences of `length` tokens.

    Args:
      blocks_BxL: packed blocks.
      length: at most L; a divisor of L if unfolding.
      unfold: whether a block becomes L / length sequences, (B * L / length) x length,
        or its first `length` tokens are taken and the others lost, B x length.
    """
    if unfold:
        return blocks_BxL.reshape(-1, length)
    return blocks_BxL[:, :length]

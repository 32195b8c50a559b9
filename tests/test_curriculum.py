import numpy as np
import pytest

from cramjax.config import CurriculumConfig
from cramjax.training.loop import cut
from cramjax.training.schedules import sequence_length

# The first one of arXiv 2212.14034, Table 12.
PAPER = CurriculumConfig(
    lengths=(8, 16, 32, 64, 128), starts=(0.1, 0.2, 0.3, 0.5, 0.75), unfold=True
)


@pytest.mark.parametrize(
    ("progress", "length"),
    [
        (0.0, 8),
        (0.1, 8),
        (0.15, 8),
        (0.2, 8),
        (0.21, 16),
        (0.31, 32),
        (0.51, 64),
        (0.75, 64),
        (0.76, 128),
        (0.99, 128),
    ],
)
def test_stages(progress, length):
    assert sequence_length(progress, PAPER, 128) == length


def test_without_stages_blocks_stay_whole():
    none = CurriculumConfig(lengths=(), starts=(), unfold=True)
    assert sequence_length(0.3, none, 96) == 96
    blocks = np.arange(12).reshape(2, 6)
    for unfold in (True, False):
        np.testing.assert_array_equal(cut(blocks, 6, unfold), blocks)


def test_unfolding_keeps_every_token_in_order():
    blocks = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(
        cut(blocks, 3, True), [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    )
    np.testing.assert_array_equal(cut(blocks, 3, False), [[0, 1, 2], [6, 7, 8]])

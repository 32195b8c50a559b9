from types import SimpleNamespace

import numpy as np
import pytest

from cramjax.config import CurriculumConfig
from cramjax.training.loop import micro_batch_at
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


@pytest.mark.parametrize(
    ("lengths", "unfold", "rows"),
    [
        ((), True, [range(16), range(16, 32)]),
        ((8, 16), True, [range(8), range(8, 16), range(16, 24), range(24, 32)]),
        ((8, 16), False, [range(8), range(16, 24)]),
    ],
)
def test_batches_at_the_beginning(lengths, unfold, rows):
    starts = (0.0, 0.5)[: len(lengths)]
    stages = CurriculumConfig(lengths=lengths, starts=starts, unfold=unfold)
    blocks = np.arange(32).reshape(2, 16)
    session = SimpleNamespace(
        config=SimpleNamespace(curriculum=stages),
        stream=SimpleNamespace(take=lambda position, rows: blocks),
    )
    np.testing.assert_array_equal(
        micro_batch_at(session, 0, 2, 0.3), [list(row) for row in rows]
    )

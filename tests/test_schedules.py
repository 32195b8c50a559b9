import jax
import numpy as np
import pytest

from cramjax import schedules


def test_triangle():
    p = np.array([0, 0.25, 0.5, 0.75, 0.875, 1], np.float32)
    np.testing.assert_allclose(
        schedules.triangle(p, 0.25, 0.25), [0.25, 0.5, 0.75, 1, 0.5, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        schedules.triangle(p, 0.5, 0.25), [0.5, 2 / 3, 5 / 6, 1, 0.5, 0], atol=1e-6
    )


def test_warmup_cosine():
    p = np.array([0, 0.05, 0.1, 0.55, 1], np.float32)
    np.testing.assert_allclose(
        schedules.warmup_cosine(p, 0.1), [0, 0.5, 1, 0.5, 0], atol=1e-6
    )
    assert schedules.warmup_cosine(np.float32(0), 0.0) == 1


# batch = min(floor(p / 0.6 * 8192 / micro + 1) * micro, 8192), k = ceil(batch / micro)
@pytest.mark.parametrize(
    ("progress", "micro_batch", "k"),
    [
        (0.0, 128, 1),
        (0.009, 128, 1),  # 0.96 + 1
        (0.010, 128, 2),  # 1.07 + 1
        (0.3, 128, 33),  # 32 + 1
        (0.599, 128, 64),
        (0.6, 128, 64),
        (1.0, 128, 64),
        (0.0, 96, 1),
        (0.3, 96, 43),  # 42.67 + 1
        (0.6, 96, 86),  # 8192 / 96 = 85.33, rounded up
        (0.0, 512, 1),
        (0.1, 512, 3),  # 2.67 + 1
        (0.6, 512, 16),
        (0.9, 8192, 1),
    ],
)
def test_accumulation_steps(progress, micro_batch, k):
    steps = jax.jit(lambda p: schedules.accumulation_steps(p, micro_batch, 8192, 0.6))
    assert steps(np.float32(progress)) == k


def test_a_fixed_batch():
    assert schedules.accumulation_steps(np.float32(0), 100, 256, 0.0) == 3

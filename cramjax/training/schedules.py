"""Pure functions of progress, the fraction of the budget that is spent, in [0, 1].

Curves take a Python or a traced number and return a traced one. Where progress comes
from (hours, tokens, FLOPs, updates) is the clock's business.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cramjax.config import CurriculumConfig, ScheduleConfig


def factor(progress: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Returns the learning rate as a fraction of its peak.

    The curve `schedule.curve` runs from the end of the warm-up to the end of the
    budget. Before it the rate rises linearly from 0 to where the curve starts; over the
    last `schedule.cooldown` of the budget it falls linearly to 0 from where the curve
    was at its beginning. Both apply to every curve, as they do not in the authors'
    implementation, which ignores the warm-up of one_cycle, multi_cycle, ramp,
    inverse_cosine and triangle, and the cool-down of linear, cosine, cosine_restarts
    and polynomial.
    """
    warmup, cooldown = schedule.warmup, schedule.cooldown
    last = 1 - cooldown / (1 - warmup)  # of the curve, where the cool-down begins
    q = jnp.minimum(_after(warmup, progress), last)
    value = CURVES[schedule.curve](q, schedule) * _rise(warmup, progress)
    if cooldown:
        value *= jnp.clip((1 - progress) / cooldown, 0.0, 1.0)
    return jnp.asarray(value, jnp.float32)


def warmup_cosine(progress: jax.Array, warmup: float) -> jax.Array:
    """Returns the fine-tuning factor: linear from 0 to 1 at `warmup`, cosine to 0 at 1.

    GLUE protocol of arXiv 2212.14034, section 5. A warm-up of 1 or more does not get to
    the cosine.
    """
    if warmup >= 1:
        return progress / warmup
    return _rise(warmup, progress) * cosine(_after(warmup, progress), None)


def _rise(warmup: float, progress: jax.Array) -> jax.Array:
    return jnp.clip(progress / warmup, 0.0, 1.0) if warmup else jnp.float32(1)


def _after(warmup: float, progress: jax.Array) -> jax.Array:
    return jnp.clip((progress - warmup) / (1 - warmup), 0.0, 1.0)


def constant(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Returns 1."""
    del schedule
    return jnp.ones_like(q)


def linear(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Falls from 1 to 0."""
    del schedule
    return 1 - q


def polynomial(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Falls as (1 - q) to the power `schedule.power`."""
    return (1 - q) ** schedule.power


def cosine(q: jax.Array, schedule: ScheduleConfig | None) -> jax.Array:
    """Falls from 1 to 0 as half a cosine (arXiv 1608.03983, equation 5)."""
    del schedule
    return 0.5 * (1 + jnp.cos(jnp.pi * q))


def cosine_restarts(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """`cosine`, `schedule.cycles` times, each from 1 (arXiv 1608.03983); 0 at the end.

    The authors' implementation has 4 cycles.
    """
    return cosine(jnp.where(q < 1, (q * schedule.cycles) % 1.0, 1.0), schedule)


def inverse_cosine(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Rises from 0 to 1 as half a cosine."""
    return 1 - cosine(q, schedule)


def ramp(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Rises linearly from 0 to 1."""
    del schedule
    return q


def one_cycle(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Rises linearly from 0 to 1 at half time and falls back to 0."""
    del schedule
    return 1 - jnp.abs(2 * q - 1)


def multi_cycle(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """`one_cycle`, `schedule.cycles` times; the authors' implementation has 8."""
    return one_cycle((q * schedule.cycles) % 1.0, schedule)


def inverse_sqrt(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Falls as sqrt(warmup / progress), 1 at the warm-up's end (arXiv 1706.03762, 5.3).

    It needs a warm-up: without one it would start at infinity.
    """
    warmup = schedule.warmup
    return jnp.sqrt(warmup / (warmup + q * (1 - warmup)))


def triangle(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """The recipe's one-cycle curve (arXiv 2212.14034, section 4.3).

    Rises linearly from `base` to 1 at 1 - falloff, then falls linearly to 0 at 1. With
    base = falloff = 0.25 it is min(0.25 + q, 4 (1 - q)).
    """
    base, falloff = schedule.base, schedule.falloff
    rise = base + (1 - base) / (1 - falloff) * q
    return jnp.clip(jnp.minimum(rise, (1 - q) / falloff), 0.0, 1.0)


def dive(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """1, then linearly to 0 over the last `falloff`."""
    return jnp.minimum(1.0, (1 - q) / schedule.falloff)


def trapezoid(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """From `base` to 1 over the first `falloff`, 1, to 0 over the last `falloff`."""
    base, falloff = schedule.base, schedule.falloff
    rise = base + (1 - base) * q / falloff
    return jnp.minimum(jnp.minimum(1.0, rise), (1 - q) / falloff)


CURVES: dict[str, Callable[[jax.Array, ScheduleConfig], jax.Array]] = {
    curve.__name__: curve
    for curve in (
        constant,
        linear,
        polynomial,
        cosine,
        cosine_restarts,
        inverse_cosine,
        inverse_sqrt,
        ramp,
        one_cycle,
        multi_cycle,
        triangle,
        dive,
        trapezoid,
    )
}


def accumulation_steps(
    progress: jax.Array, micro_batch: int, batch_size: int, ramp_share: float
) -> jax.Array:
    """Returns k, the micro-batches per update (int32).

    The batch grows linearly to `batch_size` sequences over the first `ramp_share` of
    the budget, in whole micro-batches (arXiv 2212.14034, section 4.3), and is rounded
    up to whole micro-batches at its end.
    """
    last = -(-batch_size // micro_batch)
    if ramp_share == 0:
        return jnp.full(jnp.shape(progress), last, jnp.int32)
    grown = jnp.floor(progress * (batch_size / (ramp_share * micro_batch))) + 1
    return jnp.minimum(grown, last).astype(jnp.int32)


def sequence_length(
    progress: float, curriculum: CurriculumConfig, block_length: int
) -> int:
    """Returns the tokens of a sequence: short ones first, in stages.

    Stage i begins when progress is above `starts[i]`; the first one also holds before
    that. Without stages it is the length of a block.
    """
    lengths = curriculum.lengths or (block_length,)
    begun = sum(progress > start for start in curriculum.starts)
    return lengths[max(begun - 1, 0)]

"""Pure functions of progress, the fraction of the budget already spent, in [0, 1].

Progress comes from the clock or, with `schedule.updates`, from the number of updates
(see `optimizer.scale_by_progress_schedule`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cramjax.config import CurriculumConfig, ScheduleConfig


def factor(progress: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """Returns the learning rate as a fraction of its peak.

    The curve `schedule.curve` spans the time from the end of the warm-up to the end of
    the budget. During the warm-up the rate rises linearly from 0 to the curve's first
    value; over the last `schedule.cooldown` of the budget it falls linearly to 0 from
    the curve's value where the cool-down begins. Both apply to every curve. The
    authors' implementation ignores the warm-up of one_cycle, multi_cycle, ramp,
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

    GLUE protocol of arXiv 2212.14034, section 5. With a warm-up of 1 or more, training
    ends before the cosine begins.
    """
    if warmup >= 1:
        return progress / warmup
    return _rise(warmup, progress) * cosine(_after(warmup, progress))


def _rise(warmup: float, progress: jax.Array) -> jax.Array:
    return jnp.clip(progress / warmup, 0.0, 1.0) if warmup else jnp.float32(1)


def _after(warmup: float, progress: jax.Array) -> jax.Array:
    return jnp.clip((progress - warmup) / (1 - warmup), 0.0, 1.0)


def cosine(q: jax.Array) -> jax.Array:
    """Falls from 1 to 0 as half a cosine (arXiv 1608.03983, equation 5)."""
    return 0.5 * (1 + jnp.cos(jnp.pi * q))


def one_cycle(q: jax.Array) -> jax.Array:
    """Rises linearly from 0 to 1 at half time and falls back to 0."""
    return 1 - jnp.abs(2 * q - 1)


def triangle(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """The recipe's one-cycle curve (arXiv 2212.14034, section 4.3).

    Rises linearly from `base` to 1 at 1 - falloff, then falls linearly to 0 at 1. With
    base = falloff = 0.25 it is min(0.25 + q, 4 (1 - q)).
    """
    base, falloff = schedule.base, schedule.falloff
    rise = base + (1 - base) / (1 - falloff) * q
    return jnp.clip(jnp.minimum(rise, (1 - q) / falloff), 0.0, 1.0)


def trapezoid(q: jax.Array, schedule: ScheduleConfig) -> jax.Array:
    """From `base` to 1 over the first `falloff`, 1, to 0 over the last `falloff`."""
    base, falloff = schedule.base, schedule.falloff
    rise = base + (1 - base) * q / falloff
    return jnp.minimum(jnp.minimum(1.0, rise), (1 - q) / falloff)


# Functions of q, the fraction of the time after the warm-up, and of the settings.
CURVES: dict[str, Callable[[jax.Array, ScheduleConfig], jax.Array]] = {
    "constant": lambda q, s: jnp.ones_like(q),
    "linear": lambda q, s: 1 - q,
    "polynomial": lambda q, s: (1 - q) ** s.power,
    "cosine": lambda q, s: cosine(q),
    # `cycles` times from 1 (arXiv 1608.03983); the authors' implementation has 4.
    "cosine_restarts": lambda q, s: cosine(jnp.where(q < 1, (q * s.cycles) % 1.0, 1.0)),
    "inverse_cosine": lambda q, s: 1 - cosine(q),
    # sqrt(warmup / progress), 1 at the warm-up's end (arXiv 1706.03762, section 5.3);
    # it needs a warm-up, without which it would start at infinity.
    "inverse_sqrt": lambda q, s: jnp.sqrt(s.warmup / (s.warmup + q * (1 - s.warmup))),
    "ramp": lambda q, s: q,
    "one_cycle": lambda q, s: one_cycle(q),
    # The authors' implementation has 8 cycles.
    "multi_cycle": lambda q, s: one_cycle((q * s.cycles) % 1.0),
    "triangle": triangle,
    # 1, then linearly to 0 over the last `falloff`.
    "dive": lambda q, s: jnp.minimum(1.0, (1 - q) / s.falloff),
    "trapezoid": trapezoid,
}


def accumulation_steps(
    progress: jax.Array, micro_batch: int, batch_size: int, ramp_share: float
) -> jax.Array:
    """Returns k, the micro-batches per update (int32).

    The batch grows linearly over the first `ramp_share` of the budget, one micro-batch
    at a time (arXiv 2212.14034, section 4.3), up to `batch_size` sequences, rounded up
    to whole micro-batches.
    """
    last = -(-batch_size // micro_batch)
    if ramp_share == 0:
        return jnp.full(jnp.shape(progress), last, jnp.int32)
    grown = jnp.floor(progress * (batch_size / (ramp_share * micro_batch))) + 1
    return jnp.minimum(grown, last).astype(jnp.int32)


def sequence_length(
    progress: float, curriculum: CurriculumConfig, block_length: int
) -> int:
    """Returns the tokens of a sequence: short sequences come first, in stages.

    Stage i begins when progress exceeds `starts[i]`, except that the first one is also
    in effect before. Without stages the length is that of a block.
    """
    lengths = curriculum.lengths or (block_length,)
    begun = sum(progress > start for start in curriculum.starts)
    return lengths[max(begun - 1, 0)]

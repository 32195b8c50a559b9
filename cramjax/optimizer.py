"""The optax chain and its decay mask (arXiv 2212.14034, section 4.3)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cramjax import schedules
from cramjax.schema import OptimizerConfig, ScheduleConfig


class ScaleByScheduleState(NamedTuple):
    """Updates so far, and the learning rate of the last one, for the logs."""

    updates: jax.Array
    learning_rate: jax.Array


def scale_by_schedule(
    peak: float, schedule: ScheduleConfig
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by minus the learning rate.

    It follows from the extra argument `progress`, the used share of the budget, or, if
    `schedule.updates` is set, from the number of updates before this one; the extra
    argument `rate_scale` multiplies it.
    """

    def init(params):
        del params
        return ScaleByScheduleState(jnp.int32(0), jnp.float32(0))

    def update(updates, state, params=None, *, progress, rate_scale, **extra):
        del params, extra
        if schedule.updates:
            progress = state.updates / schedule.updates
        rate = rate_scale * peak * schedules.factor(progress, schedule)
        state = ScaleByScheduleState(state.updates + 1, rate)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: which parameters decay, told by their names.

    All do except LayerNorm's scales and biases and every other bias; the positions'
    scale does, as in the authors' implementation.
    """

    def decays(path: tuple[jax.tree_util.DictKey, ...], _) -> bool:
        *modules, name = [entry.key for entry in path]
        in_norm = bool(modules) and modules[-1].endswith("norm")
        return not name.endswith("bias") and not in_norm

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimizerConfig, schedule: ScheduleConfig
) -> optax.GradientTransformationExtraArgs:
    """Returns clipping and AdamW at the budget's learning rate.

    Its `update` needs `progress=` and `rate_scale=`, see `scale_by_schedule`. The state
    keeps the norm of the accumulated gradient before clipping as "grad_norm", and
    "learning_rate", for `optax.tree.get`.
    """
    clip = (
        optax.clip_by_global_norm(config.clip_norm)
        if config.clip_norm
        else optax.identity()
    )
    return optax.chain(
        optax.snapshot("grad_norm", optax.tree.norm),
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        scale_by_schedule(config.learning_rate, schedule),
    )

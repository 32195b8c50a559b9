"""The optax chain: clipping, one of several methods, decay, the learning rate.

The recipe is AdamW with clipping (arXiv 2212.14034, section 4.3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from cramjax.config import OptimizerConfig, ScheduleConfig
from cramjax.training import schedules

# The JAX scope of the work that is done once an update, not in every micro-step.
ONCE_AN_UPDATE = "once_an_update"


def make_optimizer(
    config: OptimizerConfig, schedule: ScheduleConfig
) -> optax.GradientTransformationExtraArgs:
    """Returns the chain: clipping, the config's method with its decay, the rate.

    Decay comes after the method, or before it for those in `L2_DECAY`.
    Its `update` needs `progress=` and `rate_scale=`, see
    `scale_by_progress_schedule`. The state has, for
    `optax.tree.get`, "learning_rate" and "grad_norm", the norm of the accumulated
    gradient before clipping.
    """
    clip = optax.identity()
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
    method = [METHODS[config.name](config)]
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    method.insert(0 if config.name in L2_DECAY else 1, decay)
    return optax.chain(
        optax.snapshot("grad_norm", optax.tree.norm),
        clip,
        *method,
        scale_by_progress_schedule(config.learning_rate, schedule),
    )


class ScaleByScheduleState(NamedTuple):
    """Updates so far, and the learning rate of the last one, for the logs."""

    updates: jax.Array
    learning_rate: jax.Array


def scale_by_progress_schedule(
    peak: float, schedule: ScheduleConfig
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by minus the learning rate.

    The rate follows the extra argument `progress`, the fraction of the budget already
    spent, or the number of earlier updates if `schedule.updates` is set. The extra
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
    """Returns a tree of bools: which parameters decay, by their names.

    All do except biases and LayerNorm's scales; the scale of the position embedding
    does, as in the authors' implementation.
    """

    def decays(path: tuple[jax.tree_util.DictKey, ...], _) -> bool:
        *modules, name = [entry.key for entry in path]
        in_norm = bool(modules) and modules[-1].endswith("norm")
        return not name.endswith("bias") and not in_norm

    return jax.tree_util.tree_map_with_path(decays, params)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Without its own learning rate and relative step (arXiv 1804.04235, section 9)."""
    del config
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0)
    )


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Muon for the layers' kernels, Adam for the rest (Jordan et al., 2024).

    Muon's steps are scaled to the size of Adam's (arXiv 2502.16982, section 2.2), so
    that one learning rate serves both.
    """
    plain_matrix = optax.contrib.MuonDimensionNumbers()
    orthogonal = optax.contrib.scale_by_muon(
        beta=0.95,
        weight_dimension_numbers=lambda tree: jax.tree.map(
            lambda _: plain_matrix, tree
        ),
    )
    to_adams_size = optax.stateless_with_tree_map(
        lambda u, _: 0.2 * max(u.shape) ** 0.5 * u
    )
    muon = optax.chain(orthogonal, to_adams_size)
    return optax.partition({"matrix": muon, "other": _adam(config)}, muon_labels)


def muon_labels(params: Any) -> Any:
    """Returns a tree of "matrix" (kernels inside the layers) and "other"."""

    def label(path: tuple[jax.tree_util.DictKey, ...], _) -> str:
        names = [entry.key for entry in path]
        inside = names[0].startswith("layers_") and names[-1] == "kernel"
        return "matrix" if inside else "other"

    return jax.tree_util.tree_map_with_path(label, params)


# Each turns a clipped gradient into a step, before the learning rate.
METHODS: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
    "adamw": _adam,
    "adam_l2": _adam,
    "adafactor": _adafactor,
    "sgd": lambda c: optax.trace(decay=c.b1, nesterov=True),
    "radam": lambda c: optax.scale_by_radam(b1=c.b1, b2=c.b2, eps=c.eps),
    "lion": lambda c: optax.scale_by_lion(b1=c.b1, b2=c.b2),
    "muon": _muon,
}
# Here decay is added to the gradient; elsewhere to the step (arXiv 1711.05101).
L2_DECAY = ("adam_l2", "sgd", "radam")

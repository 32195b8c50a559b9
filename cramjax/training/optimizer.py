"""The optax chain, its methods by name, and its decay mask.

The recipe's is AdamW with clipping (arXiv 2212.14034, section 4.3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from cramjax.config import OptimizerConfig, ScheduleConfig
from cramjax.training import schedules


class ScaleByScheduleState(NamedTuple):
    """Updates so far, and the learning rate of the last one, for the logs."""

    updates: jax.Array
    learning_rate: jax.Array


def scale_by_schedule(
    peak: float, schedule: ScheduleConfig
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by minus the learning rate.

    It follows from the extra argument `progress`, the fraction of the budget already
    spent, or, if `schedule.updates` is set, from the number of updates before this one;
    the extra argument `rate_scale` multiplies it.
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

    All do except LayerNorm's scales and biases and every other bias; the positions'
    scale does, as in the authors' implementation.
    """

    def decays(path: tuple[jax.tree_util.DictKey, ...], _) -> bool:
        *modules, name = [entry.key for entry in path]
        in_norm = bool(modules) and modules[-1].endswith("norm")
        return not name.endswith("bias") and not in_norm

    return jax.tree_util.tree_map_with_path(decays, params)


class Method(NamedTuple):
    """What turns a clipped gradient into a step of about unit size.

    Attributes:
      make: from the config to the transformation.
      decay: "decoupled" (added to the step, arXiv 1711.05101) or "l2" (to the
        gradient).
    """

    make: Callable[[OptimizerConfig], optax.GradientTransformation]
    decay: str


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Without its own learning rate and relative step (arXiv 1804.04235, section 9)."""
    del config
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0)
    )


def _sgd(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.trace(decay=config.b1, nesterov=True)


def _radam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_radam(b1=config.b1, b2=config.b2, eps=config.eps)


def _lion(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1=config.b1, b2=config.b2)


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Muon for the layers' kernels, Adam for the rest (Jordan et al., 2024).

    Steps are scaled to the size of Adam's (arXiv 2502.16982, section 2.2), so that one
    learning rate serves both.
    """
    plain_matrix = optax.contrib.MuonDimensionNumbers()
    orthogonal = optax.contrib.scale_by_muon(
        beta=0.95,
        weight_dimension_numbers=lambda tree: jax.tree.map(
            lambda _: plain_matrix, tree
        ),
    )
    muon = optax.chain(
        when_emitting(orthogonal),
        optax.stateless(
            lambda updates, _: jax.tree.map(
                lambda u: 0.2 * max(u.shape) ** 0.5 * u, updates
            )
        ),
    )
    return optax.partition({"matrix": muon, "other": _adam(config)}, muon_labels)


def muon_labels(params: Any) -> Any:
    """Returns a tree of "matrix" (kernels inside the layers) and "other"."""

    def label(path: tuple[jax.tree_util.DictKey, ...], _) -> str:
        first, *_, name = [entry.key for entry in path]
        inside = first.startswith("layers_") and name == "kernel"
        return "matrix" if inside else "other"

    return jax.tree_util.tree_map_with_path(label, params)


def when_emitting(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Spares the work where `optax.MultiSteps` throws its result away.

    The extra argument `emit` says whether this micro-step ends an accumulation; if not,
    updates are 0 and the state stays.
    """

    def update(updates, state, params=None, *, emit, **extra):
        del extra
        return jax.lax.cond(
            emit,
            lambda: transform.update(updates, state, params),
            lambda: (jax.tree.map(jnp.zeros_like, updates), state),
        )

    return optax.GradientTransformationExtraArgs(transform.init, update)


METHODS = {
    "adamw": Method(_adam, "decoupled"),
    "adam_l2": Method(_adam, "l2"),
    "adafactor": Method(_adafactor, "decoupled"),
    "sgd": Method(_sgd, "l2"),
    "radam": Method(_radam, "l2"),
    "lion": Method(_lion, "decoupled"),
    "muon": Method(_muon, "decoupled"),
}


def make_optimizer(
    config: OptimizerConfig, schedule: ScheduleConfig
) -> optax.GradientTransformationExtraArgs:
    """Returns clipping and the config's method at the schedule's learning rate.

    Its `update` needs `progress=`, `rate_scale=` and `emit=`, see `scale_by_schedule`
    and `when_emitting`. The state keeps the norm of the accumulated gradient before
    clipping as "grad_norm", and "learning_rate", for `optax.tree.get`.
    """
    clip = (
        optax.clip_by_global_norm(config.clip_norm)
        if config.clip_norm
        else optax.identity()
    )
    method = METHODS[config.name]
    step = [method.make(config)]
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    step.insert(0 if method.decay == "l2" else 1, decay)
    return optax.chain(
        optax.snapshot("grad_norm", optax.tree.norm),
        clip,
        *step,
        scale_by_schedule(config.learning_rate, schedule),
    )

"""Averages of the weights along the way, scored beside the weights themselves."""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cramjax.config import AveragingConfig


@flax.struct.dataclass
class Averages:
    """On the device, in every checkpoint; what is off is None.

    Attributes:
      updates: optimizer steps seen, int32.
      ema: like the parameters, the sum of the exponential moving average.
      snapshots: like the parameters with an axis of `lawa_last` before the others.
    """

    updates: jax.Array
    ema: Any = None
    snapshots: Any = None


def init(config: AveragingConfig, params: Any) -> Averages:
    """Returns averages of nothing yet."""
    last = config.lawa_last
    return Averages(
        updates=jnp.int32(0),
        ema=jax.tree.map(jnp.zeros_like, params) if config.ema_decay else None,
        snapshots=(
            jax.tree.map(lambda p: jnp.zeros((last, *p.shape), p.dtype), params)
            if last
            else None
        ),
    )


def update(
    config: AveragingConfig, averages: Averages, params: Any, updated: jax.Array
) -> Averages:
    """Takes in the parameters if this micro-step has updated them.

    Nothing is read or written on the other micro-steps.
    """
    updates = averages.updates + updated
    ema, snapshots = averages.ema, averages.snapshots
    if ema is not None:
        decay = config.ema_decay
        ema = jax.lax.cond(
            updated,
            lambda: jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params),
            lambda: ema,
        )
    if snapshots is not None:
        number = updates // config.lawa_every  # of this snapshot, from 1
        place = (number - 1) % config.lawa_last
        snapshots = jax.lax.cond(
            updated & (updates % config.lawa_every == 0),
            lambda: jax.tree.map(
                lambda s, p: jax.lax.dynamic_update_index_in_dim(s, p, place, 0),
                snapshots,
                params,
            ),
            lambda: snapshots,
        )
    return Averages(updates, ema, snapshots)


def read(config: AveragingConfig, averages: Averages, params: Any) -> dict[str, Any]:
    """Returns the averages that are on, {"ema" or "lawa": parameters}.

    "ema" is the exponential moving average over updates, without its bias to the zeros
    it started from (as Adam's moments, arXiv 1412.6980, section 3). "lawa" is the mean
    of the latest `lawa_last` snapshots, or of as many as there are (arXiv 2209.14981).
    Before there is anything to average, both are `params`.
    """
    found = {}
    if averages.ema is not None:
        # 1 - decay^updates, also where float32 has no such decay.
        weight = -jnp.expm1(averages.updates * math.log(config.ema_decay))
        found["ema"] = jax.tree.map(
            lambda e, p: jnp.where(weight > 0, e / jnp.maximum(weight, 1e-30), p),
            averages.ema,
            params,
        )
    if averages.snapshots is not None:
        count = jnp.minimum(averages.updates // config.lawa_every, config.lawa_last)
        found["lawa"] = jax.tree.map(
            # Places not taken yet are 0.
            lambda s, p: jnp.where(
                count > 0, jnp.sum(s, axis=0) / jnp.maximum(count, 1), p
            ),
            averages.snapshots,
            params,
        )
    return found

"""Averages of the weights along the way, scored beside the weights themselves."""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cramjax.config import AveragingConfig


@flax.struct.dataclass
class Averages:
    """State of the averages on the device; an average that is off is None.

    Attributes:
      updates: optimizer updates so far, int32.
      ema: the exponential moving average, biased towards its zero initialization.
      snapshots: the parameters with a leading axis of length `lawa_last`.
    """

    updates: jax.Array
    ema: Any = None
    snapshots: Any = None


def init(config: AveragingConfig, params: Any) -> Averages:
    """Returns averages before the first update."""
    ema = snapshots = None
    if config.ema_decay:
        ema = jax.tree.map(jnp.zeros_like, params)
    if last := config.lawa_last:
        snapshots = jax.tree.map(lambda p: jnp.zeros((last, *p.shape), p.dtype), params)
    return Averages(jnp.int32(0), ema, snapshots)


def update(config: AveragingConfig, averages: Averages, params: Any) -> Averages:
    """Includes the parameters after an update."""
    updates = averages.updates + 1
    ema, snapshots = averages.ema, averages.snapshots
    if ema is not None:
        decay = config.ema_decay
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
    if snapshots is not None:
        number = updates // config.lawa_every  # of this snapshot, from 1
        slot = (number - 1) % config.lawa_last
        snapshots = jax.lax.cond(
            updates % config.lawa_every == 0,
            lambda: jax.tree.map(
                lambda s, p: jax.lax.dynamic_update_index_in_dim(s, p, slot, 0),
                snapshots,
                params,
            ),
            lambda: snapshots,
        )
    return Averages(updates, ema, snapshots)


def read(config: AveragingConfig, averages: Averages, params: Any) -> dict[str, Any]:
    """Returns the averages that are on, {"ema" or "lawa": parameters}.

    "ema" is the exponential moving average over updates, corrected for its zero
    initialization as Adam's moments are (arXiv 1412.6980, section 3). "lawa" is the
    mean of the latest `lawa_last` snapshots, or of fewer early in a run (arXiv
    2209.14981). Before the first update or snapshot, they are `params`.
    """
    found = {}
    if averages.ema is not None:
        # 1 - decay^updates, accurate also where float32 rounds the decay to 1.
        weight = -jnp.expm1(averages.updates * math.log(config.ema_decay))
        found["ema"] = jax.tree.map(
            lambda e, p: jnp.where(weight > 0, e / jnp.maximum(weight, 1e-30), p),
            averages.ema,
            params,
        )
    if averages.snapshots is not None:
        count = jnp.minimum(averages.updates // config.lawa_every, config.lawa_last)

        def mean(s, p):  # unused slots hold zeros
            return jnp.where(count > 0, jnp.sum(s, axis=0) / jnp.maximum(count, 1), p)

        found["lawa"] = jax.tree.map(mean, averages.snapshots, params)
    return found

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.config import AveragingConfig
from cramjax.training import averaging


def averaged(config, values):
    """Feeds scalars; returns the averages after each."""
    state = averaging.init(config, {"w": jnp.zeros(())})
    history = []
    take = jax.jit(lambda s, p: averaging.update(config, s, p))
    for value in values:
        params = {"w": jnp.float32(value)}
        state = take(state, params)
        read = averaging.read(config, state, params)
        history.append({name: float(tree["w"]) for name, tree in read.items()})
    return history


def test_ema_by_hand():
    config = AveragingConfig(ema_decay=0.75, lawa_last=0, lawa_every=1)
    history = averaged(config, [4.0, 1.0, 7.0])
    # Weights 1; 3/7, 4/7; 9/37, 12/37, 16/37.
    expected = [4.0, (3 * 4 + 4) / 7, (9 * 4 + 12 + 16 * 7) / 37]
    assert [h["ema"] for h in history] == pytest.approx(expected)
    assert all(h.keys() == {"ema"} for h in history)


@pytest.mark.parametrize("decay", [0.999, 0.99999])
def test_the_average_of_a_constant_is_the_constant(decay):
    config = AveragingConfig(ema_decay=decay, lawa_last=0, lawa_every=1)
    assert averaged(config, [3.0] * 50)[-1]["ema"] == pytest.approx(3.0, rel=1e-5)


def test_the_mean_of_the_latest_snapshots_by_hand():
    config = AveragingConfig(ema_decay=0.0, lawa_last=3, lawa_every=2)
    history = averaged(config, [10.0, 1, 20, 2, 30, 6, 40, 10, 50])
    # Snapshots after updates 2, 4, 6 and 8; before the first, the weights themselves.
    expected = [10, 1, 1, 1.5, 1.5, 3, 3, 6, 6]
    assert [h["lawa"] for h in history] == pytest.approx(expected)


def test_off_costs_nothing():
    config = AveragingConfig(ema_decay=0.0, lawa_last=0, lawa_every=1)
    state = averaging.init(config, {"w": jnp.zeros((5, 5))})
    assert [np.shape(x) for x in jax.tree.leaves(state)] == [()]
    assert averaging.read(config, state, {"w": jnp.ones((5, 5))}) == {}

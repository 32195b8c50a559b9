import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cramjax.config import load
from cramjax.config.training import CURVES
from cramjax.errors import UserError
from cramjax.training import schedules

FULL = Path(__file__).parents[2] / "shared" / "golden" / "schedules.json"
DEFAULTS = load("configs/default.py").schedule
# Names of the authors' implementation -> ours, with the settings it has built in.
AUTHORS = {
    "none": {"curve": "constant"},
    "budget-constant": {"curve": "constant"},
    "budget-linear": {"curve": "linear"},
    "budget-cosine-decay": {"curve": "cosine"},
    "cosine-decay": {"curve": "cosine"},
    "budget-cosine-annealing": {"curve": "cosine_restarts", "cycles": 4},
    "budget-polynomial": {"curve": "polynomial", "power": 1.0},
    "polynomial-decay": {"curve": "polynomial", "power": 1.0},
    "budget-one-cycle": {"curve": "one_cycle"},
    "one-cycle": {"curve": "one_cycle"},
    "budget-multi-cycle": {"curve": "multi_cycle", "cycles": 8},
    "budget-ramp": {"curve": "ramp"},
    "ramp": {"curve": "ramp"},
    "budget-inv-cosine": {"curve": "inverse_cosine"},
    "budget-inverse-sqrt": {"curve": "inverse_sqrt"},
    "inverse-sqrt": {"curve": "inverse_sqrt"},
    "budget-triangle1": {"curve": "triangle", "base": 0.5, "falloff": 0.25},
    "budget-triangle2": {"curve": "triangle", "base": 0.25, "falloff": 0.25},
    "triangle2": {"curve": "triangle", "base": 0.25, "falloff": 0.25},
}
# What it ignores, and we do not; "none" has neither there.
IGNORES_WARMUP = ("one_cycle", "multi_cycle", "ramp", "inverse_cosine", "triangle")
IGNORES_COOLDOWN = ("linear", "cosine", "cosine_restarts", "polynomial")
IGNORES_COOLDOWN += ("one_cycle", "multi_cycle", "triangle")


def schedule(**changes):
    return dataclasses.replace(DEFAULTS, **changes)


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_schedules(name):
    if not FULL.exists():
        pytest.skip(f"the authors' values are not here: {FULL}")
    settings, compared = AUTHORS[name], 0
    curve = settings["curve"]
    for key, values in json.loads(FULL.read_text()).items():
        its_name, *options = key.split("|")
        steps = [int(option.partition("=")[2]) for option in options]
        warmup, cooldown = (step / 1000 for step in steps)  # of 1000 steps
        ignored = (warmup and (curve in IGNORES_WARMUP or name == "none")) or (
            cooldown and (curve in IGNORES_COOLDOWN or name == "none")
        )
        if its_name != name or ignored or isinstance(values, str):
            continue
        progress = np.array([*np.arange(0, 1, 0.05), 0.999], np.float32)
        ours = schedules.factor(
            progress, schedule(**settings, warmup=warmup, cooldown=cooldown)
        )
        # Not where it jumps: there the side is a matter of the last digit.
        jumps = curve == "cosine_restarts"
        near = np.isclose((progress - warmup) / (1 - warmup) * 4 % 1, 0, atol=1e-4)
        near |= np.isclose((progress - warmup) / (1 - warmup) * 4 % 1, 1, atol=1e-4)
        keep = ~near if jumps else np.ones_like(near)
        np.testing.assert_allclose(ours[keep], np.array(values)[keep], atol=1e-3)
        compared += 1
    assert compared >= 1


def test_the_table_and_the_schema_have_the_same_names():
    assert tuple(schedules.CURVES) == CURVES


@pytest.mark.parametrize(
    ("changes", "expected"),  # at 0, 0.1, 0.25, 0.5, 0.75, 0.875, 1
    [
        ({"curve": "triangle"}, [0.25, 0.35, 0.5, 0.75, 1, 0.5, 0]),
        ({"curve": "dive", "falloff": 0.5}, [1, 1, 1, 1, 0.5, 0.25, 0]),
        ({"curve": "dive", "falloff": 0.75}, [1, 1, 1, 2 / 3, 1 / 3, 1 / 6, 0]),
        ({"curve": "trapezoid", "base": 0.0}, [0, 0.4, 1, 1, 1, 0.5, 0]),
        (
            {"curve": "polynomial", "power": 2.0},
            [1, 0.81, 9 / 16, 1 / 4, 1 / 16, 1 / 64, 0],
        ),
        ({"curve": "multi_cycle", "cycles": 2}, [0, 0.4, 1, 0, 1, 0.5, 0]),
        # Warm-up to where the curve starts, then the whole curve; cool-down at the end.
        ({"curve": "linear", "warmup": 0.5}, [0, 0.2, 0.5, 1, 0.5, 0.25, 0]),
        ({"curve": "triangle", "warmup": 0.5}, [0, 0.05, 0.125, 0.25, 0.75, 1, 0]),
        ({"curve": "constant", "cooldown": 0.25}, [1, 1, 1, 1, 1, 0.5, 0]),
        ({"curve": "linear", "cooldown": 0.5}, [1, 0.9, 0.75, 0.5, 0.25, 0.125, 0]),
    ],
)
def test_curves_by_hand(changes, expected):
    progress = np.array([0, 0.1, 0.25, 0.5, 0.75, 0.875, 1], np.float32)
    ours = jax.jit(lambda p: schedules.factor(p, schedule(**changes)))(progress)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_stays_between_0_and_1(curve):
    progress = np.linspace(0, 1, 1001, dtype=np.float32)
    for warmup, cooldown in ((0.1, 0.0), (0.1, 0.1)):
        values = schedules.factor(
            progress, schedule(curve=curve, warmup=warmup, cooldown=cooldown)
        )
        assert values.shape == progress.shape
        assert values.min() >= 0 and values.max() <= 1 + 1e-6
        assert values[0] == 0  # the warm-up
        assert cooldown == 0 or values[-1] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curve=triangel", "config.schedule.curve is 'triangel': must be one of"),
        ("curve=inverse_sqrt", "config.schedule.warmup is 0.0: must be above 0 with"),
        ("warmup=1.0", "config.schedule.warmup is 1.0"),
        ("cooldown=1.5", "config.schedule.cooldown is 1.5: must be between 0 and 1 -"),
        ("cycles=0", "config.schedule.cycles is 0"),
        ("updates=-1", "config.schedule.updates is -1"),
    ],
)
def test_a_wrong_schedule_is_one_line(override, message):
    with pytest.raises(UserError) as error:
        load("configs/default.py", [f"schedule.{override}"])
    assert message in str(error.value)


def test_warmup_cosine():
    p = np.array([0, 0.05, 0.1, 0.55, 1], np.float32)
    np.testing.assert_allclose(
        schedules.warmup_cosine(p, 0.1), [0, 0.5, 1, 0.5, 0], atol=1e-6
    )
    assert schedules.warmup_cosine(np.float32(0), 0.0) == 1
    # A warm-up that is longer than the training, or as long.
    np.testing.assert_allclose(schedules.warmup_cosine(p, 2.0), p / 2)
    np.testing.assert_allclose(schedules.warmup_cosine(p, 1.0), p)


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

import pytest

from cramjax.config import BudgetConfig
from cramjax.training.clock import Clock


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_wall_clock_counts_all_but_validation():
    time = FakeTime()
    clock = Clock(BudgetConfig(hours=1.0, tokens=0, flops=0.0), now=time)
    assert clock.progress() == 0
    time.now += 900
    assert clock.progress() == 0.25
    with clock.measure("validation"):
        time.now += 5000
        assert clock.progress() == 0.25
    with clock.measure("checkpoints"):
        time.now += 900
    assert clock.progress() == 0.5
    time.now += 9000
    assert clock.progress() == 1
    assert clock.seconds == {
        "training": 9900,
        "lost": 0,
        "compilation": 0,
        "checkpoints": 900,
        "validation": 5000,
        "idle": 0,
    }


def test_what_went_by_before_it_began_can_be_charged():
    time = FakeTime()
    clock = Clock(BudgetConfig(hours=1.0, tokens=0, flops=0.0), now=time)
    clock.add_seconds("compilation", 900.0)
    time.now += 900
    assert clock.progress() == 0.5
    assert clock.seconds["compilation"] == clock.seconds["training"] == 900


def test_preparing_a_clock_is_not_charged():
    time = FakeTime()
    spent = {"seconds": {"training": 5.0}}
    clock = Clock(BudgetConfig(hours=1.0, tokens=0, flops=0.0), spent, now=time)
    time.now += 100
    clock.restart()
    time.now += 1
    assert clock.elapsed_s == 6


def test_a_resumed_clock_has_only_what_is_left():
    time = FakeTime()
    budget = BudgetConfig(hours=1.0, tokens=0, flops=0.0)
    spent = {"training": 1500, "lost": 300, "idle": 1e6}
    clock = Clock(budget, {"seconds": spent}, now=time)
    assert clock.progress() == 0.5
    time.now += 60
    assert clock.elapsed_s == 1860


def test_undone_work_is_lost_not_gained():
    time = FakeTime()
    clock = Clock(BudgetConfig(hours=1.0, tokens=0, flops=0.0), now=time)
    time.now += 100
    kept = clock.seconds
    time.now += 30
    with clock.measure("checkpoints"):
        time.now += 5
    clock.roll_back({"step": 7, "seconds": kept})
    time.now += 1
    assert clock.elapsed_s == 136
    assert (clock.seconds["training"], clock.seconds["lost"]) == (101, 35)
    assert clock.seconds["checkpoints"] == 0
    assert clock.step == 7


@pytest.mark.parametrize(
    "budget",
    [
        BudgetConfig(hours=0.0, tokens=1000, flops=0.0),
        BudgetConfig(hours=0.0, tokens=0, flops=7000.0),
    ],
)
def test_tokens_and_flops(budget):
    time = FakeTime()
    clock = Clock(budget, {"tokens": 100, "flops": 700.0}, now=time)
    clock.advance(4, 400, 2800.0)
    time.now += 1e9
    assert clock.progress() == 0.5
    counts = {"step": 1, "updates": 0, "position": 4, "tokens": 500, "flops": 3500}
    assert clock.saved() == counts | {"seconds": clock.seconds}

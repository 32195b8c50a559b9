"""From gradients to weights."""

import dataclasses

from cramjax.schema.checks import require


@dataclasses.dataclass(frozen=True)
class AveragingConfig:
    """Averages of the weights."""

    ema_decay: float
    lawa_last: int
    lawa_every: int

    def __post_init__(self):
        require(
            0 <= self.ema_decay < 1,
            "averaging.ema_decay",
            self.ema_decay,
            "in [0, 1) (0 = off)",
        )
        require(
            self.lawa_last >= 0,
            "averaging.lawa_last",
            self.lawa_last,
            ">= 0 (0 = off)",
        )
        require(self.lawa_every >= 1, "averaging.lawa_every", self.lawa_every, ">= 1")

    @property
    def names(self) -> tuple[str, ...]:
        """The averages that are on."""
        on = {"ema": self.ema_decay, "lawa": self.lawa_last}
        return tuple(name for name, value in on.items() if value)


# Names of `optimizer.METHODS`, which this file, without JAX, does not import.
OPTIMIZERS = ("adamw", "adam_l2", "adafactor", "sgd", "radam", "lion", "muon")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """From gradients to steps."""

    name: str
    learning_rate: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float

    def __post_init__(self):
        require(
            self.name in OPTIMIZERS, "optimizer.name", self.name, f"one of {OPTIMIZERS}"
        )
        require(
            self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "> 0"
        )
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, "in [0, 1)")
        require(self.eps > 0, "optimizer.eps", self.eps, "> 0")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            require(value >= 0, f"optimizer.{name}", value, ">= 0")


# Names of `schedules.CURVES`, which this file, without JAX, does not import.
CURVES = (
    "constant",
    "linear",
    "polynomial",
    "cosine",
    "cosine_restarts",
    "inverse_cosine",
    "inverse_sqrt",
    "ramp",
    "one_cycle",
    "multi_cycle",
    "triangle",
    "dive",
    "trapezoid",
)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the budget."""

    curve: str
    base: float
    falloff: float
    power: float
    cycles: int
    warmup: float
    cooldown: float
    updates: int

    def __post_init__(self):
        def check(ok: bool, name: str, allowed: str) -> None:
            require(ok, f"schedule.{name}", getattr(self, name), allowed)

        check(self.curve in CURVES, "curve", f"one of {CURVES}")
        check(0 <= self.base <= 1, "base", "in [0, 1]")
        check(0 < self.falloff < 1, "falloff", "between 0 and 1")
        check(
            self.curve != "trapezoid" or self.falloff <= 0.5,
            "falloff",
            "at most 0.5 with schedule.curve='trapezoid'",
        )
        check(self.power > 0, "power", "> 0")
        check(self.cycles >= 1, "cycles", ">= 1")
        check(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        check(
            self.curve != "inverse_sqrt" or self.warmup > 0,
            "warmup",
            "above 0 with schedule.curve='inverse_sqrt'",
        )
        check(
            0 <= self.cooldown <= 1 - self.warmup,
            "cooldown",
            f"between 0 and 1 - schedule.warmup = {1 - self.warmup:g}",
        )
        check(self.updates >= 0, "updates", ">= 0 (0 = over the budget)")


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Sequences per update over the budget."""

    sequences: int
    ramp_share: float

    def __post_init__(self):
        require(self.sequences > 0, "batch.sequences", self.sequences, "> 0")
        require(self.ramp_share >= 0, "batch.ramp_share", self.ramp_share, ">= 0")

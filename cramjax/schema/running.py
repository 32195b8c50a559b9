"""How long, how often, and when to stop."""

import dataclasses

from cramjax.errors import UserError
from cramjax.schema.checks import require


@dataclasses.dataclass(frozen=True)
class BudgetConfig:
    """How long to train: exactly one of the three."""

    hours: float
    tokens: int
    flops: float

    def __post_init__(self):
        kinds = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in kinds.items():
            require(value >= 0, f"budget.{name}", value, ">= 0 (0 = not set)")
        given = {name: value for name, value in kinds.items() if value}
        if not given:
            raise UserError(
                "no budget: config.budget.hours, tokens and flops are all 0; set one, "
                "e.g. --config.budget.hours=24"
            )
        if len(given) > 1:
            values = " and ".join(
                f"{name}={value:.12g}" for name, value in given.items()
            )
            ways = ", or ".join(
                " ".join(
                    f"--config.budget.{name}={given[name] if name == keep else 0:.12g}"
                    for name in given
                )
                for keep in given
            )
            raise UserError(f"more than one budget: {values}; pass one of {ways}")

    @property
    def kind(self) -> str:
        """The name of the one that is set: hours, tokens or flops."""
        return next(f.name for f in dataclasses.fields(self) if getattr(self, f.name))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the training state is written."""

    every_minutes: float
    keep: int

    def __post_init__(self):
        require(
            self.every_minutes > 0,
            "checkpoint.every_minutes",
            self.every_minutes,
            "> 0",
        )
        require(self.keep >= 1, "checkpoint.keep", self.keep, ">= 1")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """When metrics are written."""

    every_steps: int

    def __post_init__(self):
        require(self.every_steps >= 1, "log.every_steps", self.every_steps, ">= 1")


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a run that goes wrong steps back or stops."""

    max_bad_steps: int
    rate_factor: float
    max_loss: float
    max_loss_after: float

    def __post_init__(self):
        for name, allowed, ok in (
            ("max_bad_steps", ">= 1", self.max_bad_steps >= 1),
            ("rate_factor", "above 0 and below 1", 0 < self.rate_factor < 1),
            ("max_loss", ">= 0 (0 = no limit)", self.max_loss >= 0),
            ("max_loss_after", "in [0, 1]", 0 <= self.max_loss_after <= 1),
        ):
            require(ok, f"guard.{name}", getattr(self, name), allowed)


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """The held-out loss."""

    every_minutes: float
    mask_rate: float
    max_blocks: int

    def __post_init__(self):
        require(
            0 < self.mask_rate <= 1,
            "validation.mask_rate",
            self.mask_rate,
            "above 0 and at most 1",
        )
        require(self.max_blocks >= 1, "validation.max_blocks", self.max_blocks, ">= 1")
        require(
            self.every_minutes >= 0,
            "validation.every_minutes",
            self.every_minutes,
            ">= 0 (0 = at the end only)",
        )

"""From gradients to weights, how long, and what is recorded on the way."""

import dataclasses

from cramjax.config.key import Rule, Section, above, at_least, key, one_of, within
from cramjax.errors import UserError

# Tests compare these names with the tables of training/, which imports JAX.
OPTIMIZERS = ("adamw", "adam_l2", "adafactor", "sgd", "radam", "lion", "muon")
# {tracker, and its extra: the module}
TRACKERS = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
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
class OptimizerConfig(Section):
    """From gradients to updates (paper 4.3)."""

    # "adam_l2", "sgd" and "radam" add L2 regularization to the gradient, the others
    # have decoupled weight decay. "sgd" has Nesterov momentum b1. "muon" trains the
    # kernels inside the layers, AdamW all other parameters.
    name: str = key("adamw", one_of(*OPTIMIZERS), absent="adamw")
    learning_rate: float = key(1e-3, above(0))  # at the peak of the schedule
    b1: float = key(0.9, within("[0, 1)"))
    b2: float = key(0.98, within("[0, 1)"))
    eps: float = key(1e-12, above(0))
    weight_decay: float = key(0.01, at_least(0))  # not on norms and biases
    # Global norm of the accumulated gradient; 0 = no clipping.
    clip_norm: float = key(0.5, at_least(0))


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Section):
    """The learning rate over the budget."""

    # "triangle" is the recipe's (paper 4.3); "dive" is constant, then linear to 0.
    curve: str = key("triangle", one_of(*CURVES), absent="triangle")
    # Fraction of the peak at which triangle and trapezoid begin.
    base: float = key(0.25, within("[0, 1]"))
    # After the warm-up: the last fraction, in which triangle, dive and trapezoid fall
    # to 0. Over the same fraction at the beginning, trapezoid rises.
    falloff: float = key(0.25, within("(0, 1)"))
    power: float = key(1.0, above(0), absent=1.0)  # of polynomial
    cycles: int = key(4, at_least(1), absent=4)  # of cosine_restarts and multi_cycle
    # Fraction of the budget in which the rate rises from 0, before the curve.
    warmup: float = key(0.0, within("[0, 1)"), absent=0.0)
    # Fraction of the budget in which it falls to 0 at the end, whatever the curve.
    cooldown: float = key(0.0, at_least(0), absent=0.0)
    # The curve spans this many updates; 0 = the budget.
    updates: int = key(0, at_least(0, "0 = over the budget"), absent=0)

    def _relate(self) -> None:
        if self.curve == "trapezoid" and self.falloff > 0.5:
            self._refuse("falloff", "at most 0.5 with schedule.curve='trapezoid'")
        if self.curve == "inverse_sqrt" and not self.warmup:
            self._refuse("warmup", "above 0 with schedule.curve='inverse_sqrt'")
        rest = 1 - self.warmup
        if self.cooldown > rest:
            self._refuse("cooldown", f"between 0 and 1 - schedule.warmup = {rest:g}")


@dataclasses.dataclass(frozen=True)
class AveragingConfig(Section):
    """Averages of the weights, which are scored beside the weights themselves."""

    ema_decay: float = key(0.0, within("[0, 1)"), absent=0.0)  # per update; 0 = off
    # Snapshots in the mean, each as large as the model; 0 = off.
    lawa_last: int = key(0, at_least(0, "0 = off"), absent=0)
    lawa_every: int = key(100, at_least(1), absent=100)  # updates between snapshots

    @property
    def names(self) -> tuple[str, ...]:
        """The averages that are on."""
        on = {"ema": self.ema_decay, "lawa": self.lawa_last}
        return tuple(name for name, value in on.items() if value)


@dataclasses.dataclass(frozen=True)
class BatchConfig(Section):
    """Sequences per update over the budget."""

    sequences: int = key(8192, above(0))  # at the end of the ramp
    # Fraction of the budget until then; 0 = from the beginning, > 1 = never reached.
    ramp_share: float = key(0.6, at_least(0))


@dataclasses.dataclass(frozen=True)
class BudgetConfig(Section):
    """How long to train: exactly one of the three is set."""

    # Of wall clock, with compilation and checkpoints, without validation.
    hours: float = key(24.0, at_least(0, "0 = not set"))
    tokens: int = key(0, at_least(0, "0 = not set"))  # that the model sees
    flops: float = key(0.0, at_least(0, "0 = not set"))  # forward and backward

    def _relate(self) -> None:
        given = {k: v for k, v in dataclasses.asdict(self).items() if v}
        if not given:
            raise UserError(
                "no budget: config.budget.hours, tokens and flops are all 0; set one, "
                "e.g. --config.budget.hours=24"
            )
        if len(given) > 1:
            values = " and ".join(f"{k}={v:.12g}" for k, v in given.items())
            raise UserError(
                f"more than one budget: {values}; set all but one to 0, e.g. "
                f"--config.budget.{next(iter(given))}=0"
            )

    @property
    def kind(self) -> str:
        """The name of the one that is set: hours, tokens or flops."""
        return next(f.name for f in dataclasses.fields(self) if getattr(self, f.name))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    """When the training state is written."""

    every_minutes: float = key(10.0, above(0), operational=True)
    keep: int = key(2, at_least(1), operational=True)  # the newest ones


@dataclasses.dataclass(frozen=True)
class LogConfig(Section):
    """When metrics are written, and where to."""

    # Micro-steps per line of metrics.jsonl.
    every_steps: int = key(100, at_least(1), operational=True)
    # In addition to metrics.jsonl; each needs its extra: pip install -e '.[wandb]'.
    trackers: tuple[str, ...] = key(
        (),
        Rule(lambda x: set(x) <= set(TRACKERS), f"some of {tuple(TRACKERS)}"),
        absent=(),
        operational=True,
    )


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Section):
    """Where the time of a micro-step goes."""

    # First micro-step that is traced, counted from 0, and the one after the last:
    # (100, 105) traces five. Their trace is in profile/ of the workdir; () = none.
    steps: tuple[int, ...] = key(
        (),
        Rule(lambda x: not x or len(x) == 2 and 0 <= x[0] < x[1], "() or (FIRST, END)"),
        absent=(),
        operational=True,
    )


@dataclasses.dataclass(frozen=True)
class GuardConfig(Section):
    """When a run that goes wrong rolls back or stops."""

    # After this many micro-batches in a row without finite gradients, training goes
    # back to the last checkpoint with a lower learning rate; the second time the run
    # stops.
    max_bad_steps: int = key(50, at_least(1), absent=50)
    rate_factor: float = key(0.5, within("(0, 1)"), absent=0.5)  # how much lower
    # The run stops if the loss is above this; 0 = no limit.
    max_loss: float = key(
        6.0, at_least(0, "0 = no limit"), absent=0.0, operational=True
    )
    # Fraction of the budget from which on the loss is checked.
    max_loss_after: float = key(0.125, within("[0, 1]"), absent=0.125, operational=True)


@dataclasses.dataclass(frozen=True)
class ValidationConfig(Section):
    """The held-out loss."""

    # Outside the budget; 0 = at the end only.
    every_minutes: float = key(
        60.0, at_least(0, "0 = at the end only"), absent=0.0, operational=True
    )
    # In held-out blocks, whatever objective.mask_rate.
    mask_rate: float = key(0.15, within("(0, 1]"))
    # Held-out blocks that are scored, at most, evenly spread over all of them.
    max_blocks: int = key(2048, at_least(1))

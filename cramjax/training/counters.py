"""What the host counts while the device trains, kept in every checkpoint."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Counters:
    """Plain numbers, ready for JSON.

    Attributes:
      step: micro-steps done.
      updates: optimizer steps done.
      position: blocks read; the next batch starts here.
      tokens: tokens trained on.
      flops: model FLOPs of these.
      seconds: by what they went to, see `budget.BudgetClock.seconds`.
      window: losses since the last line of metrics.jsonl.
      last_loss: the mean over the window before that, or None.
      latest: what the last micro-step said: learning_rate, grad_norm, batch_size,
        skipped, bad_in_a_row.
      energy_kwh: drawn by the card, None if not known.
    """

    step: int = 0
    updates: int = 0
    position: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    window: list[float] = dataclasses.field(default_factory=list)
    last_loss: float | None = None
    latest: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"skipped": 0, "bad_in_a_row": 0}
    )
    energy_kwh: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns a copy as nested plain containers."""
        return dataclasses.asdict(self)

"""What a run is told: frozen dataclasses, one per section of `configs/default.py`.

`configs/default.py` lists every key with its meaning, unit and the recipe's value.
These files say which values are allowed, this one which of them go together;
`config.py` reads them from files and flags.
"""

import dataclasses

from cramjax.schema.checks import require
from cramjax.schema.data import CurriculumConfig, DataConfig, ObjectiveConfig
from cramjax.schema.glue import GlueConfig
from cramjax.schema.model import MODEL_CHOICES, ModelConfig
from cramjax.schema.optimization import (
    CURVES,
    OPTIMIZERS,
    AveragingConfig,
    BatchConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from cramjax.schema.running import (
    BudgetConfig,
    CheckpointConfig,
    GuardConfig,
    LogConfig,
    ValidationConfig,
)

__all__ = [
    "CURVES",
    "MODEL_CHOICES",
    "OPTIMIZERS",
    "AveragingConfig",
    "BatchConfig",
    "BudgetConfig",
    "CheckpointConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "GlueConfig",
    "GuardConfig",
    "LogConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "ValidationConfig",
    "require",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is told."""

    seed: int
    platform: str
    micro_batch: int
    compilation_cache: str
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    curriculum: CurriculumConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    averaging: AveragingConfig
    batch: BatchConfig
    budget: BudgetConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    guard: GuardConfig
    validation: ValidationConfig
    glue: GlueConfig

    def __post_init__(self):
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2^31)")
        require(
            self.platform in ("gpu", "any"), "platform", self.platform, "'gpu' or 'any'"
        )
        require(
            self.micro_batch >= 0,
            "micro_batch",
            self.micro_batch,
            ">= 0, sequences per forward pass (0 = the most that fit)",
        )
        require(
            self.micro_batch <= self.batch.sequences,
            "micro_batch",
            self.micro_batch,
            f"at most batch.sequences={self.batch.sequences}",
        )
        require(
            self.model.added_positions != "learned"
            or self.glue.max_length <= self.model.max_length,
            "glue.max_length",
            self.glue.max_length,
            f"at most model.max_length={self.model.max_length}, the number of learned "
            "positions",
        )
        require(
            self.model.mixing == "attention" or not self.objective.separate_documents,
            "objective.separate_documents",
            self.objective.separate_documents,
            f"False with model.mixing={self.model.mixing!r}",
        )
        require(
            self.data.sep or not self.objective.separate_documents,
            "objective.separate_documents",
            self.objective.separate_documents,
            "False with data.sep=False: documents are told by <sep>",
        )
        first_update = self.batch.sequences * self.model.max_length
        require(
            self.budget.kind != "tokens"
            or self.batch.ramp_share > 0
            or self.budget.tokens >= first_update,
            "budget.tokens",
            self.budget.tokens,
            f"at least {first_update}, one update of batch.sequences="
            f"{self.batch.sequences} (or batch.ramp_share above 0)",
        )
        length = self.model.max_length
        lengths = self.curriculum.lengths or (length,)
        for n in lengths:
            require(
                n <= length and (length % n == 0 or not self.curriculum.unfold),
                "curriculum.lengths",
                lengths,
                f"at most model.max_length={length}, and divisors of it with "
                "curriculum.unfold=True",
            )
        require(
            self.model.attention != "cudnn"
            or not any(n % 2 for n in (*lengths, length)),
            "model.attention",
            self.model.attention,
            f"'xla' or 'auto' with sequences of {lengths} (cuDNN's have even lengths)",
        )
        for key, rate, shortest in (
            ("objective.mask_rate", self.objective.min_mask_rate, lengths[0]),
            ("validation.mask_rate", self.validation.mask_rate, length),
        ):
            require(
                round(rate * shortest) >= 1,
                key,
                rate,
                f"large enough to mask one position of a sequence of {shortest}",
            )
        for start in self.glue.starts:
            require(
                start in ("pretrained", "random", *self.averaging.names),
                "glue.starts",
                self.glue.starts,
                f"without {start!r}, unless averaging.{start}_... is set",
            )

"""Fine-tuning."""

import dataclasses

from cramjax.schema.checks import require

# Names of `glue.scores.METRICS`, which this file, without scikit-learn, does not
# import.
METRICS = (
    "accuracy",
    "f1",
    "f1a",
    "macro_f1",
    "matthews",
    "pearson",
    "spearman",
)


@dataclasses.dataclass(frozen=True)
class GlueConfig:
    """Fine-tuning: the tasks and the protocol. Task names are in `glue/tasks.py`."""

    tasks: tuple[str, ...]
    data_dir: str
    superglue_dir: str
    tfds_dir: str
    own_dir: str
    own_texts: tuple[str, ...]
    own_label: str
    own_metric: str
    test_sets: bool
    starts: tuple[str, ...]
    trials: int
    trials_at_once: int
    max_length: int
    empty_second: bool
    epochs: int
    batch_size: int
    learning_rates: tuple[float, ...]
    b1: float
    b2: float
    eps: float
    weight_decay: float
    warmup_share: float
    warmup_steps: int
    dropout: float
    head_width: int
    max_train_rows: int

    def __post_init__(self):
        allowed = ("pretrained", "random", "ema", "lawa")
        require(
            len(self.starts) > 0
            and len(set(self.starts)) == len(self.starts)
            and set(self.starts) <= set(allowed),
            "glue.starts",
            self.starts,
            f"one or more of {allowed}",
        )
        require(
            len(self.own_texts) > 0,
            "glue.own_texts",
            self.own_texts,
            "one or more columns",
        )
        require(
            self.own_metric in METRICS,
            "glue.own_metric",
            self.own_metric,
            f"one of {METRICS}",
        )
        require(self.max_length >= 8, "glue.max_length", self.max_length, ">= 8")
        for name in ("trials", "epochs", "batch_size", "head_width"):
            value = getattr(self, name)
            require(value >= 1, f"glue.{name}", value, ">= 1")
        require(
            len(self.learning_rates) > 0 and min(self.learning_rates) > 0,
            "glue.learning_rates",
            self.learning_rates,
            "one or more positive numbers",
        )
        for name in ("b1", "b2", "warmup_share", "dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"glue.{name}", value, "in [0, 1)")
        require(
            self.trials_at_once >= 0,
            "glue.trials_at_once",
            self.trials_at_once,
            ">= 0 (0 = measured)",
        )
        require(self.eps > 0, "glue.eps", self.eps, "> 0")
        require(self.weight_decay >= 0, "glue.weight_decay", self.weight_decay, ">= 0")
        require(
            self.max_train_rows >= 0,
            "glue.max_train_rows",
            self.max_train_rows,
            ">= 0 (0 = all)",
        )
        require(
            self.warmup_steps >= 0,
            "glue.warmup_steps",
            self.warmup_steps,
            ">= 0 (0 = warmup_share)",
        )

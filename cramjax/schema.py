"""What a run is told: frozen dataclasses, one per section of `configs/default.py`.

`configs/default.py` lists every key with its meaning, unit and the recipe's value; this
file says which values are allowed. `config.py` reads them from files and flags.
"""

import dataclasses

from cramjax.errors import UserError


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raises a `UserError` that names the key, its value and what is allowed."""
    if not ok:
        raise UserError(f"config.{key} is {value!r}: must be {allowed}")


# Keys of the model whose value is one of a few names.
MODEL_CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "attention": ("xla", "cudnn"),
    "mixing": ("attention", "fourier"),
    "ffn": ("gated", "plain"),
    "activation": ("gelu", "relu", "silu", "relu_squared"),
    "positions": ("scaled_sinusoidal", "sinusoidal", "learned", "rotary", "none"),
    "norm": ("layernorm", "rmsnorm"),
    "norm_placement": ("pre", "post"),
    "init": ("normal", "small", "megatron", "wang", "deepnorm"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder's shape and precision."""

    width: int
    ffn_width: int
    layers: int
    repeats: int
    heads: int
    vocab_size: int
    embedding_width: int
    max_length: int
    dtype: str
    attention: str
    mixing: str
    ffn: str
    ffn_every: int
    activation: str
    positions: str
    token_types: int
    norm: str
    norm_eps: float
    norm_placement: str
    embedding_norm: bool
    first_norm: bool
    final_norm: bool
    qkv_bias: bool
    linear_bias: bool
    head_transform: bool
    decoder_bias: bool
    sparse_prediction: bool
    init: str
    init_std: float

    def __post_init__(self):
        def check(ok: bool, name: str, allowed: str) -> None:
            require(ok, f"model.{name}", getattr(self, name), allowed)

        for name, allowed in MODEL_CHOICES.items():
            check(getattr(self, name) in allowed, name, f"one of {allowed}")
        for name in ("width", "layers", "repeats", "heads", "ffn_width"):
            check(getattr(self, name) > 0, name, "> 0")
        check(
            self.width % self.heads == 0,
            "heads",
            f"a divisor of model.width={self.width}",
        )
        check(self.embedding_width >= 0, "embedding_width", ">= 0 (0 = model.width)")
        if "sinusoidal" in self.positions:
            check(
                self.embedding_dim % 2 == 0,
                "embedding_width" if self.embedding_width else "width",
                f"even with model.positions={self.positions!r}",
            )
        if self.positions == "rotary":
            check(
                self.head_dim % 2 == 0 and self.mixing == "attention",
                "positions",
                "another one, unless model.width / model.heads is even and "
                "model.mixing is 'attention'",
            )
        check(
            self.ffn == "plain" or self.ffn_width % 2 == 0,
            "ffn_width",
            "even with model.ffn='gated'",
        )
        check(
            1 <= self.ffn_every <= self.layers,
            "ffn_every",
            f"between 1 and model.layers={self.layers}",
        )
        check(
            16 <= self.vocab_size <= 1 << 24,
            "vocab_size",
            "between 16 and 16777216",
        )
        check(self.max_length >= 8, "max_length", ">= 8")
        check(self.token_types >= 0, "token_types", ">= 0 (0 = none)")
        check(
            self.attention == "xla" or self.dtype != "float32",
            "attention",
            "'xla' with model.dtype='float32' (cuDNN attention is 16-bit)",
        )
        check(
            self.first_norm or self.norm_placement == "pre",
            "first_norm",
            "True with model.norm_placement='post'",
        )
        check(self.norm_eps > 0, "norm_eps", "> 0")
        check(self.init_std > 0, "init_std", "> 0")

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.width // self.heads

    @property
    def embedding_dim(self) -> int:
        """Channels of the word embedding."""
        return self.embedding_width or self.width

    def has_ffn(self, index: int) -> bool:
        """Returns whether layer `index`, from 0, has a feed-forward part."""
        return (index + 1) % self.ffn_every == 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes blocks."""

    sources: tuple[str, ...]
    dir: str
    text_field: str
    txt_documents: str
    tokenizer_chars: int
    max_tokens_per_char: float
    held_out_share: float
    order: str

    def __post_init__(self):
        rules = ("blank_line", "line", "file")
        require(
            self.txt_documents in rules,
            "data.txt_documents",
            self.txt_documents,
            f"one of {rules}",
        )
        require(
            self.tokenizer_chars >= 1,
            "data.tokenizer_chars",
            self.tokenizer_chars,
            ">= 1",
        )
        require(
            self.max_tokens_per_char >= 0,
            "data.max_tokens_per_char",
            self.max_tokens_per_char,
            ">= 0",
        )
        require(
            0 < self.held_out_share < 0.5,
            "data.held_out_share",
            self.held_out_share,
            "above 0 and below 0.5",
        )
        orders = ("sentence_length", "random", "stored")
        require(self.order in orders, "data.order", self.order, f"one of {orders}")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Masked language modelling."""

    mask_rate: float
    final_mask_rate: float
    mask_share: float
    random_share: float
    separate_documents: bool
    dropout: float

    @property
    def max_mask_rate(self) -> float:
        """The highest masking rate of the run, which decides the arrays' shapes."""
        return max(self.mask_rate, self.final_mask_rate)

    @property
    def min_mask_rate(self) -> float:
        """The lowest masking rate of the run."""
        return min(self.mask_rate, self.final_mask_rate or self.mask_rate)

    def __post_init__(self):
        require(
            0 <= self.final_mask_rate <= 1,
            "objective.final_mask_rate",
            self.final_mask_rate,
            "in [0, 1] (0 = objective.mask_rate throughout)",
        )
        require(
            0 < self.mask_rate <= 1,
            "objective.mask_rate",
            self.mask_rate,
            "above 0 and at most 1",
        )
        require(
            0 <= self.mask_share <= 1,
            "objective.mask_share",
            self.mask_share,
            "in [0, 1]",
        )
        require(
            0 <= self.random_share <= 1 - self.mask_share,
            "objective.random_share",
            self.random_share,
            f"between 0 and 1 - objective.mask_share = {1 - self.mask_share:g}",
        )
        require(0 <= self.dropout < 1, "objective.dropout", self.dropout, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Sequence lengths over the budget."""

    lengths: tuple[int, ...]
    starts: tuple[float, ...]
    unfold: bool

    def __post_init__(self):
        require(
            all(n >= 8 for n in self.lengths)
            and list(self.lengths) == sorted(set(self.lengths)),
            "curriculum.lengths",
            self.lengths,
            "increasing and >= 8, or ()",
        )
        require(
            len(self.starts) == len(self.lengths)
            and all(0 <= start < 1 for start in self.starts)
            and list(self.starts) == sorted(set(self.starts)),
            "curriculum.starts",
            self.starts,
            f"increasing, in [0, 1), one for each of curriculum.lengths={self.lengths}",
        )


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


@dataclasses.dataclass(frozen=True)
class GlueConfig:
    """Fine-tuning: the tasks and the protocol. Task names are in `glue/tasks.py`."""

    tasks: tuple[str, ...]
    data_dir: str
    starts: tuple[str, ...]
    trials: int
    max_length: int
    epochs: int
    batch_size: int
    learning_rates: tuple[float, ...]
    b1: float
    b2: float
    eps: float
    weight_decay: float
    warmup_share: float
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
        require(self.eps > 0, "glue.eps", self.eps, "> 0")
        require(self.weight_decay >= 0, "glue.weight_decay", self.weight_decay, ">= 0")
        require(
            self.max_train_rows >= 0,
            "glue.max_train_rows",
            self.max_train_rows,
            ">= 0 (0 = all)",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is told."""

    seed: int
    platform: str
    micro_batch: int
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
            self.micro_batch >= 1,
            "micro_batch",
            self.micro_batch,
            ">= 1, sequences per forward pass (0, for automatic, is not there yet)",
        )
        require(
            self.micro_batch <= self.batch.sequences,
            "micro_batch",
            self.micro_batch,
            f"at most batch.sequences={self.batch.sequences}",
        )
        require(
            self.model.positions != "learned"
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

"""The encoder."""

import dataclasses

from cramjax.schema.checks import require

ADDED_POSITIONS = ("scaled_sinusoidal", "sinusoidal", "learned")

# Keys of the model whose value is one of a few names.
MODEL_CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "attention": ("xla", "cudnn", "auto"),
    "mixing": ("attention", "fourier"),
    "ffn": ("gated", "plain"),
    "activation": ("gelu", "relu", "silu", "relu_squared"),
    "positions": (
        *ADDED_POSITIONS,
        "rotary",
        *(f"{added}+rotary" for added in ADDED_POSITIONS),
        "none",
    ),
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
        if self.rotary:
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
            self.attention != "cudnn" or self.dtype != "float32",
            "attention",
            "'xla' or 'auto' with model.dtype='float32' (cuDNN attention is 16-bit)",
        )
        check(
            self.attention != "cudnn"
            or (self.head_dim <= 128 and self.head_dim % 8 == 0),
            "attention",
            f"'xla' or 'auto' with model.width / model.heads = {self.head_dim} (cuDNN "
            "has heads of up to 128 channels, a multiple of 8)",
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
    def added_positions(self) -> str:
        """What is added to the words: one of `ADDED_POSITIONS`, or ""."""
        added = self.positions.removesuffix("+rotary")
        return added if added in ADDED_POSITIONS else ""

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are rotated by their position."""
        return self.positions.endswith("rotary")

    @property
    def embedding_dim(self) -> int:
        """Channels of the word embedding."""
        return self.embedding_width or self.width

    def has_ffn(self, index: int) -> bool:
        """Returns whether layer `index`, from 0, has a feed-forward part."""
        return (index + 1) % self.ffn_every == 0

"""The encoder."""

import dataclasses

from cramjax.config.key import Section, above, at_least, key, one_of, within

# With `init_from` only these are the config's; the others are those of its model.
CHOSEN_MODEL_KEYS = ("dtype", "attention", "max_length")
ADDED_POSITIONS = ("scaled_sinusoidal", "sinusoidal", "learned")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The encoder's shape and precision; crammed-bert in the recipe (paper 4.2)."""

    width: int = key(768, above(0))  # of the residual stream
    ffn_width: int = key(3072, above(0))  # of gate and value together, each half of it
    layers: int = key(16, above(0))
    # How often all layers are applied, each time with the same weights.
    repeats: int = key(1, above(0), absent=1)
    heads: int = key(12, above(0))  # head dim = width / heads
    # Entries of the tokenizer, its 7 special tokens included.
    vocab_size: int = key(32768, within("[16, 16777216]"))
    # Of a factorised token embedding; 0 = width, not factorised.
    embedding_width: int = key(0, at_least(0, "0 = model.width"), absent=0)
    max_length: int = key(128, at_least(8))  # tokens of a packed block
    # Of the computation; parameters are float32.
    dtype: str = key("bfloat16", one_of("float32", "bfloat16", "float16"))
    # "cudnn" needs compute capability >= 8.0 and 16 bits; "auto" is the faster of the
    # two, as measured before training.
    attention: str = key("xla", one_of("xla", "cudnn", "auto"))
    mixing: str = key("attention", one_of("attention", "fourier"), absent="attention")
    # "plain" is ffn_width wide.
    ffn: str = key("gated", one_of("gated", "plain"), absent="gated")
    ffn_every: int = key(1, at_least(1), absent=1)  # every n-th layer has an FFN
    # "gelu" is the exact one.
    activation: str = key(
        "gelu", one_of("gelu", "relu", "silu", "relu_squared"), absent="gelu"
    )
    # The first three are added to the token embeddings ("learned" has max_length of
    # them), "rotary" acts in attention.
    positions: str = key(
        "scaled_sinusoidal",
        one_of(
            *ADDED_POSITIONS,
            "rotary",
            *(f"{added}+rotary" for added in ADDED_POSITIONS),
            "none",
        ),
        absent="scaled_sinusoidal",
    )
    rotary_base: float = key(10000.0, above(0), absent=10000.0)  # arXiv 2104.09864
    # Every n-th layer attends everywhere, beginning with the first; the others, as in
    # ModernBERT (arXiv 2412.13663), to at most local_window positions on either side.
    global_every: int = key(1, at_least(1), absent=1)
    local_window: int = key(64, at_least(1), absent=64)
    local_rotary_base: float = key(10000.0, above(0), absent=10000.0)
    # Embeddings for segments A and B, 2 in BERT; 0 = none.
    token_types: int = key(0, at_least(0, "0 = none"), absent=0)
    norm: str = key("layernorm", one_of("layernorm", "rmsnorm"), absent="layernorm")
    norm_eps: float = key(1e-12, above(0))
    norm_placement: str = key("pre", one_of("pre", "post"), absent="pre")
    embedding_norm: bool = key(True, absent=True)
    first_norm: bool = key(True, absent=True)  # before the first attention; "pre" only
    final_norm: bool = key(True, absent=True)
    qkv_bias: bool = key(False, absent=False)  # of query, key and value
    linear_bias: bool = key(False, absent=False)  # of every other dense layer
    # Dense layer, activation and norm before the decoder.
    head_transform: bool = key(False, absent=False)
    decoder_bias: bool = key(False, absent=False)
    sparse_prediction: bool = key(True, absent=True)  # decode predicted positions only
    # The last layer's queries, output and feed-forward at predicted positions only: the
    # logits are the same.
    sparse_last_layer: bool = key(False, absent=False)
    # In masked language modelling, predicted positions enter after the first n layers,
    # which compute nothing at them (arXiv 2211.04898); all of them are <mask>. 0 = off.
    late_masks: int = key(0, at_least(0, "0 = off"), absent=0)
    init: str = key(
        "normal",
        one_of("normal", "small", "megatron", "wang", "deepnorm"),
        absent="normal",
    )
    init_std: float = key(0.02, above(0))  # of dense kernels and embeddings

    def _relate(self) -> None:
        if self.width % self.heads:
            self._refuse("heads", f"a divisor of model.width={self.width}")
        if "sinusoidal" in self.positions and self.embedding_dim % 2:
            name = "embedding_width" if self.embedding_width else "width"
            self._refuse(name, f"even with model.positions={self.positions!r}")
        if self.rotary and (self.head_dim % 2 or self.mixing != "attention"):
            self._refuse(
                "positions",
                "another one, unless model.width / model.heads is even and "
                "model.mixing is 'attention'",
            )
        if self.global_every > 1 and self.mixing != "attention":
            self._refuse("global_every", "1, unless model.mixing is 'attention'")
        if self.ffn == "gated" and self.ffn_width % 2:
            self._refuse("ffn_width", "even with model.ffn='gated'")
        if self.ffn_every > self.layers:
            self._refuse("ffn_every", f"between 1 and model.layers={self.layers}")
        fits_cudnn = self.head_dim <= 128 and self.head_dim % 8 == 0
        if self.attention == "cudnn" and (self.dtype == "float32" or not fits_cudnn):
            self._refuse(
                "attention",
                f"'xla' or 'auto' with model.dtype={self.dtype!r} and model.width / "
                f"model.heads = {self.head_dim} (cuDNN attention is 16-bit, its heads "
                "have up to 128 channels, a multiple of 8)",
            )
        if self.sparse_last_layer and self.mixing != "attention":
            self._refuse("sparse_last_layer", "False, unless model.mixing='attention'")
        if self.late_masks >= (passes := self.layers * self.repeats):
            self._refuse("late_masks", f"below model.layers * model.repeats = {passes}")
        if self.late_masks and not self.sparse_last_layer:
            self._refuse("late_masks", "0, unless model.sparse_last_layer is True")
        if not self.first_norm and self.norm_placement == "post":
            self._refuse("first_norm", "True with model.norm_placement='post'")

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.width // self.heads

    @property
    def added_positions(self) -> str:
        """What is added to the embeddings: one of `ADDED_POSITIONS`, or ""."""
        added = self.positions.removesuffix("+rotary")
        return added if added in ADDED_POSITIONS else ""

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are rotated by their position."""
        return self.positions.endswith("rotary")

    @property
    def embedding_dim(self) -> int:
        """Channels of the token embedding."""
        return self.embedding_width or self.width

    def reach(self, index: int) -> tuple[int, float]:
        """Returns a layer's window, 0 if it attends everywhere, and its rotary base."""
        everywhere = 0, self.rotary_base
        nearby = self.local_window, self.local_rotary_base
        return nearby if index % self.global_every else everywhere

    def has_ffn(self, index: int) -> bool:
        """Returns whether layer `index`, from 0, has a feed-forward part."""
        return (index + 1) % self.ffn_every == 0

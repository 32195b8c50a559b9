"""The text, and what is asked of the model about it."""

import dataclasses

from cramjax.schema.checks import require

# Names of `data.ordering.VALUES`, and two more.
ORDERS = (
    "sentence_length",
    "fragments",
    "unigram",
    "unigram_reversed",
    "decoded_length",
    "random",
    "stored",
)


# Names of `data.kinds.KINDS`.
TOKENIZER_KINDS = (
    "wordpiece",
    "bert_wordpiece",
    "bpe",
    "unigram",
    "sentencepiece_bpe",
    "sentencepiece_unigram",
    "wordlevel",
)


# Names of `data.tokenizer.STEPS`; "clean" is a tokenizer kind's.
NORMALIZER_STEPS = ("quotes", "nfd", "lowercase", "strip_accents", "spaces", "ascii")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes blocks."""

    sources: tuple[str, ...]
    dir: str
    split: str
    shares: tuple[float, ...]
    max_chars: int
    max_documents: int
    text_field: str
    txt_documents: str
    keep: tuple[str, ...]
    join_chars: int
    licence: str
    normalizer: tuple[str, ...]
    tokenizer: str
    tokenizer_kind: str
    tokenizer_chars: int
    max_tokens_per_char: float
    min_document_chars: int
    max_document_chars: int
    cls: bool
    sep: bool
    drop_duplicates: bool
    dedup_bytes: int
    dedup_chunk_bytes: int
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
            not self.shares
            or (len(self.shares) == len(self.sources) and min(self.shares) > 0),
            "data.shares",
            self.shares,
            f"() or a positive number for each of data.sources={self.sources}",
        )
        require(
            not self.shares or self.max_chars > 0,
            "data.max_chars",
            self.max_chars,
            "> 0, the characters of the whole corpus, for data.shares to be shares of",
        )
        for name in (
            "max_chars",
            "max_documents",
            "join_chars",
            "min_document_chars",
            "max_document_chars",
        ):
            value = getattr(self, name)
            require(value >= 0, f"data.{name}", value, ">= 0 (0 = off)")
        for rule in self.keep:
            require(
                "=" in rule[1:],
                "data.keep",
                rule,
                "FIELD=VALUE or FIELD=VALUE|VALUE, meta.pile_set_name=Books3 say",
            )
        require(
            set(self.normalizer) <= set(NORMALIZER_STEPS),
            "data.normalizer",
            self.normalizer,
            f"some of {NORMALIZER_STEPS}",
        )
        require(
            self.tokenizer_kind in TOKENIZER_KINDS,
            "data.tokenizer_kind",
            self.tokenizer_kind,
            f"one of {TOKENIZER_KINDS}",
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
            self.dedup_bytes == 0 or self.dedup_bytes >= 16,
            "data.dedup_bytes",
            self.dedup_bytes,
            "0 (off) or at least 16",
        )
        require(
            self.dedup_chunk_bytes >= 1 << 24,
            "data.dedup_chunk_bytes",
            self.dedup_chunk_bytes,
            f"at least {1 << 24}",
        )
        require(
            0 < self.held_out_share < 0.5,
            "data.held_out_share",
            self.held_out_share,
            "above 0 and below 0.5",
        )
        require(
            self.sep or self.order != "fragments",
            "data.order",
            self.order,
            "another one with data.sep=False: fragments are told by <sep>",
        )
        require(self.order in ORDERS, "data.order", self.order, f"one of {ORDERS}")


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

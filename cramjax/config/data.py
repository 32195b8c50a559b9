"""The text, and the task that the model is trained on."""

import dataclasses

from cramjax.config.key import (
    Rule,
    Section,
    at_least,
    increasing,
    key,
    one_of,
    within,
)

# Tests compare these names with the tables of data/, which imports heavy libraries.
NORMALIZER_STEPS = ("quotes", "nfd", "lowercase", "strip_accents", "spaces", "ascii")
TOKENIZER_KINDS = (
    "wordpiece",
    "bert_wordpiece",
    "bpe",
    "unigram",
    "sentencepiece_bpe",
    "sentencepiece_unigram",
    "wordlevel",
)
IMPORTED = "imported"
# With `init_from` these are its model's.
TOKENIZER_KEYS = ("tokenizer", "tokenizer_kind", "normalizer", "cls", "sep")
ORDERS = (
    "sentence_length",
    "fragments",
    "unigram",
    "unigram_reversed",
    "decoded_length",
    "random",
    "stored",
)
OFF = at_least(0, "0 = off")


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Which text is read, and how it becomes packed blocks of tokens."""

    # Files (.txt, .jsonl, .json with one record per line, .csv, .parquet; all but the
    # last also as .gz, .xz, .bz2, .zst): paths, globs and URLs, which are read while
    # they are downloaded and not kept. "hf://datasets/OWNER/NAME/PATH" is the newest
    # commit on the Hugging Face hub (NAME@COMMIT another one, NAME@~parquet its Parquet
    # branch); https:// needs the package aiohttp, s3:// s3fs, gs:// gcsfs. Or
    # "tfds:NAME", or "embedded:books".
    sources: tuple[str, ...] = key(())
    dir: str = key("data", operational=True)  # of packed corpora, a folder each
    split: str = key("train", absent="train")  # of tfds: sources
    # How data.max_chars is divided between the sources, one number for each, in any
    # unit; () = in proportion to their bytes.
    shares: tuple[float, ...] = key((), absent=())
    # Characters of text in total, taken from every file alike; 0 = all of it.
    max_chars: int = key(0, OFF, absent=0)
    # Total, taken from every file alike, before duplicates and filters; 0 = all.
    max_documents: int = key(0, OFF, absent=0)
    # The field with the text in records of .jsonl, .json, .csv, .parquet and tfds:.
    text_field: str = key("text", absent="text")
    # What ends a document of a .txt file.
    txt_documents: str = key(
        "blank_line", one_of("blank_line", "line", "file"), absent="blank_line"
    )
    # Records to keep, e.g. ("meta.pile_set_name=Books3|Gutenberg (PG-19)",); () = all.
    keep: tuple[str, ...] = key(
        (),
        Rule(
            lambda rules: all("=" in rule[1:] for rule in rules),
            "FIELD=VALUE or FIELD=VALUE|VALUE each, for example "
            "('meta.pile_set_name=Books3',)",
        ),
        absent=(),
    )
    join_chars: int = key(0, OFF, absent=0)  # shorter documents join the next one
    licence: str = key("", absent="")  # of the text, a note for the reports
    # Steps of the normalizer, in this order; all of them in the recipe (paper 4.4).
    normalizer: tuple[str, ...] = key(
        NORMALIZER_STEPS,
        Rule(lambda x: set(x) <= set(NORMALIZER_STEPS), f"some of {NORMALIZER_STEPS}"),
        absent=NORMALIZER_STEPS,
    )
    tokenizer: str = key("", absent="")  # tokenizer.json to use; "" = train one
    # "bert_wordpiece" splits off every punctuation mark and CJK character and drops
    # control characters; "sentencepiece_*" keep punctuation with its word; "wordlevel"
    # has frequent words, and <unk> for others. "wordpiece" is the recipe's (paper 4.4).
    # "imported" takes data.tokenizer of another project as it is, and is not trained.
    tokenizer_kind: str = key(
        "wordpiece", one_of(*TOKENIZER_KINDS, IMPORTED), absent="wordpiece"
    )
    # Characters of the text that the tokenizer is trained on.
    tokenizer_chars: int = key(100_000_000, at_least(1), absent=100_000_000)
    # Documents with more are dropped (paper 4.4); 0 = none.
    max_tokens_per_char: float = key(0.25, at_least(0))
    min_document_chars: int = key(0, OFF, absent=0)  # shorter documents are dropped
    max_document_chars: int = key(0, OFF, absent=0)  # longer documents are dropped
    cls: bool = key(False, absent=False)  # <cls> before every document
    sep: bool = key(True, absent=True)  # <sep> after every document (paper 4.4)
    # Drop documents that equal an earlier one, surrounding whitespace aside.
    drop_duplicates: bool = key(False, absent=False)
    # Drop documents whose Jaccard similarity to an earlier one (of their runs of five
    # words, estimated by MinHash) is at least this; 0 = off.
    near_duplicates: float = key(
        0.0,
        Rule(lambda x: x == 0 or 0.5 <= x <= 1, "0 (off) or in [0.5, 1]"),
        absent=0.0,
    )
    # Cut out every run of at least this many bytes that occurred before (75 in paper
    # 4.4, after arXiv 2107.06499); the first occurrence stays. 0 = off. Needs the extra
    # "dedup" and, for the time being, disk space for the text.
    dedup_bytes: int = key(
        0, Rule(lambda x: x == 0 or x >= 16, "0 (off) or at least 16"), absent=0
    )
    # Bytes of text that are searched at once, at 13 bytes of memory each (7 GB), or up
    # to 22 if most of the text repeats. Longer text is split into parts of half this
    # size, and every pair of parts is searched, in time quadratic in the text's length:
    # set this as high as your memory allows.
    dedup_chunk_bytes: int = key(1 << 29, at_least(1 << 24), absent=1 << 29)
    # Fraction of the documents that is held out, never trained on. Documents above 4M
    # characters are split first, and each piece counts as a document.
    held_out_share: float = key(0.005, within("(0, 0.5)"))
    # Order of the first pass. "sentence_length": blocks with the most "." first;
    # "fragments": with the most <sep>; "unigram": with the likeliest tokens
    # ("unigram_reversed": the unlikeliest); "decoded_length": the fewest characters;
    # "random"; "stored": as read.
    order: str = key("sentence_length", one_of(*ORDERS))

    def _relate(self) -> None:
        shares = self.shares
        if shares and (len(shares) != len(self.sources) or min(shares) <= 0):
            one_each = (
                f"() or a positive number for each of data.sources={self.sources}"
            )
            self._refuse("shares", one_each)
        if shares and not self.max_chars:
            whole = "> 0, the characters of the whole corpus, which data.shares divides"
            self._refuse("max_chars", whole)
        if self.tokenizer_kind == IMPORTED and (self.normalizer or not self.tokenizer):
            needs = "another kind, unless data.tokenizer is set and data.normalizer=()"
            self._refuse("tokenizer_kind", needs)
        if self.order == "fragments" and not self.sep:
            other = "another order, unless data.sep=True: <sep> ends a fragment"
            self._refuse("order", other)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Masked language modelling."""

    # Fraction of the positions that is predicted, the same in every sequence.
    mask_rate: float = key(0.25, within("(0, 1]"))
    # The rate at the end of the budget, reached linearly; 0 = mask_rate throughout.
    final_mask_rate: float = key(
        0.0,
        Rule(lambda x: 0 <= x <= 1, "in [0, 1] (0 = objective.mask_rate throughout)"),
        absent=0.0,
    )
    # Fraction of the predicted positions that becomes <mask>.
    mask_share: float = key(0.8, within("[0, 1]"), absent=0.8)
    # Fraction of them that becomes a random token; the others stay as they are.
    random_share: float = key(0.1, at_least(0), absent=0.1)
    # No attention across <sep> within a block; <sep>, which this would give away, is
    # not predicted.
    separate_documents: bool = key(False, absent=False)
    dropout: float = key(0.0, within("[0, 1)"))  # off in pretraining (paper 4.3)

    @property
    def max_mask_rate(self) -> float:
        """The highest masking rate of the run, which decides the arrays' shapes."""
        return max(self.mask_rate, self.final_mask_rate)

    def _relate(self) -> None:
        rest = 1 - self.mask_share
        if self.random_share > rest:
            limit = f"between 0 and 1 - objective.mask_share = {rest:g}"
            self._refuse("random_share", limit)


@dataclasses.dataclass(frozen=True)
class CurriculumConfig(Section):
    """Sequences cut from blocks, short ones first."""

    # Tokens of a sequence, one number for each stage; () = whole blocks throughout.
    lengths: tuple[int, ...] = key(
        (),
        Rule(
            lambda x: increasing(x) and all(n >= 8 for n in x),
            "increasing and >= 8, or ()",
        ),
        absent=(),
    )
    # Fraction of the budget at which each stage begins.
    starts: tuple[float, ...] = key((), absent=())
    unfold: bool = key(True, absent=True)  # use all of a block, not its beginning only

    def _relate(self) -> None:
        inside = all(0 <= start < 1 for start in self.starts)
        one_each = len(self.starts) == len(self.lengths)
        if not (one_each and inside and increasing(self.starts)):
            allowed = "increasing, in [0, 1), one for each of curriculum.lengths="
            self._refuse("starts", f"{allowed}{self.lengths}")

"""The recipe's WordPiece tokenizer (arXiv 2212.14034, section 4.4)."""

import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from cramjax.errors import UserError

# Said aloud, so that the library does not guess (and warn) after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# In the order of their ids: <pad> is 0.
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")
PAD, CLS, SEP, MASK = (
    SPECIAL_TOKENS.index(t) for t in ("<pad>", "<cls>", "<sep>", "<mask>")
)


def normalizer() -> normalizers.Normalizer:
    """Returns the recipe's normaliser: lower-case ASCII without accents."""
    return normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r"[^\x00-\x7F]+"), ""),
        ]
    )


def train(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a WordPiece tokenizer of exactly `vocab_size` entries.

    Raises:
      UserError: the text has too few different pieces for that size, or too many
        different characters.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        raise UserError(
            f"config.model.vocab_size is {vocab_size}: the corpus allows at most "
            f"{size}; pass --config.model.vocab_size={size} or less, or add text"
        )
    if size > vocab_size:
        raise UserError(
            f"config.model.vocab_size is {vocab_size}: the corpus's characters alone "
            f"need {size}; pass --config.model.vocab_size={size} or more"
        )
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Returns the tokenizer of a packed corpus.

    Text that spells a special token, "<mask>" say, is read as plain characters.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer

"""The recipe's WordPiece tokenizer (arXiv 2212.14034, section 4.4)."""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
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


# The recipe's normaliser, step by step and in its order: lower-case ASCII without
# accents.
STEPS: dict[str, list[normalizers.Normalizer]] = {
    "quotes": [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')],
    "nfd": [normalizers.NFD()],
    "lowercase": [normalizers.Lowercase()],
    "strip_accents": [normalizers.StripAccents()],
    "spaces": [normalizers.Replace(Regex(" {2,}"), " ")],
    "ascii": [normalizers.Replace(Regex(r"[^\x00-\x7F]+"), "")],
}


def normalizer(steps: Sequence[str]) -> normalizers.Normalizer:
    """Returns the steps of `STEPS` that are named, in the recipe's order."""
    chosen = [parts for name, parts in STEPS.items() if name in steps]
    return normalizers.Sequence(list(itertools.chain.from_iterable(chosen)))


def normalize_ascii(text: str, steps: Sequence[str]) -> str:
    """Does to ASCII text what `normalizer` does, but for runs of spaces.

    These separate words however long they are.
    """
    if "quotes" in steps:
        text = text.replace("``", '"').replace("''", '"')
    return text.lower() if "lowercase" in steps else text


class Encoder:
    """A tokenizer's ids for many texts; ASCII ones are normalised in Python.

    The library's normaliser keeps track of every character's place, which nobody asks
    for here: without it, encoding ASCII takes 0.6 of the time. The ids are the same.
    """

    def __init__(self, words: Tokenizer, steps: Sequence[str]):
        """Takes what `load` returns, and the steps it was trained with."""
        self._words, self._steps = words, steps
        self._bare = Tokenizer.from_str(words.to_str())
        self._bare.encode_special_tokens = True
        self._bare.normalizer = normalizers.Sequence([])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns each text's ids, without special tokens."""
        ascii_texts = [normalize_ascii(t, self._steps) for t in texts if t.isascii()]
        others = [text for text in texts if not text.isascii()]
        plain, other = (
            iter(words.encode_batch_fast(some, add_special_tokens=False))
            for words, some in ((self._bare, ascii_texts), (self._words, others))
        )
        return [next(plain if text.isascii() else other).ids for text in texts]


def train(
    documents: Callable[[], Iterable[str]], vocab_size: int, steps: Sequence[str]
) -> Tokenizer:
    """Trains a WordPiece tokenizer of exactly `vocab_size` entries.

    The same text gives the same tokenizer. The library alone would not do that: it
    numbers the word-internal characters ("##a") in the order of a hash map, and breaks
    ties between merges by number (huggingface/tokenizers, issue 1794). So a first pass
    finds these characters, and the second is given them in a fixed order.

    Args:
      documents: called twice, for two passes over the text.
      vocab_size: entries, the special tokens included.
      steps: of the normaliser, names in `STEPS`.

    Raises:
      UserError: the text has too few different pieces for that size, or too many
        different characters.
    """
    bare = _untrained(steps)
    characters = _pieces(bare, documents(), 0, SPECIAL_TOKENS)[len(SPECIAL_TOKENS) :]
    inside = sorted(piece for piece in characters if piece.startswith("##"))
    pieces = _pieces(bare, documents(), vocab_size, (*SPECIAL_TOKENS, *inside))
    if len(pieces) < vocab_size:
        raise UserError(
            f"config.model.vocab_size is {vocab_size}: the corpus allows at most "
            f"{len(pieces)}; pass --config.model.vocab_size={len(pieces)} or less, or "
            "add text"
        )
    if len(pieces) > vocab_size:
        raise UserError(
            f"config.model.vocab_size is {vocab_size}: the corpus's characters alone "
            f"need {len(pieces)}; pass --config.model.vocab_size={len(pieces)} or more"
        )
    tokenizer = _untrained(steps, {piece: i for i, piece in enumerate(pieces)})
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _untrained(steps: Sequence[str], vocab: dict[str, int] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizer(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _pieces(
    tokenizer: Tokenizer,
    documents: Iterable[str],
    vocab_size: int,
    first: Sequence[str],
) -> list[str]:
    """Returns a trained vocabulary, `first` and all characters in any case."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(first), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def adopt(path: Path, vocab_size: int, steps: Sequence[str]) -> str:
    """Returns, as JSON, a tokenizer that was trained before, on another corpus say.

    Raises:
      UserError: it cannot be read, or is another one than the config describes.
    """
    words = load(path, "pass a tokenizer.json of a packed corpus")
    ids = [words.token_to_id(token) for token in SPECIAL_TOKENS]
    for ok, what in (
        (
            ids == list(range(len(SPECIAL_TOKENS))),
            f"has not the special tokens {SPECIAL_TOKENS} as its first ones",
        ),
        (
            words.get_vocab_size() == vocab_size,
            f"has {words.get_vocab_size()} entries, not config.model.vocab_size="
            f"{vocab_size}",
        ),
        (
            str(words.normalizer) == str(normalizer(steps)),
            f"was trained with another normaliser than config.data.normalizer={steps}",
        ),
    ):
        if not ok:
            raise UserError(f"config.data.tokenizer: {path} {what}")
    return words.to_str()


def load(path: Path, way_out: str) -> Tokenizer:
    """Returns the tokenizer of a packed corpus.

    Text that spells a special token, "<mask>" say, is read as plain characters.

    Raises:
      UserError: the file is missing or damaged; the message ends in `way_out`.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} cannot be read ({error}): {way_out}") from error
    tokenizer.encode_special_tokens = True
    return tokenizer

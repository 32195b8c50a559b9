"""From text to tokens: normaliser, training, and what a token stands for.

The recipe's is a WordPiece (arXiv 2212.14034, section 4.4); `kinds.KINDS` has others.
"""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers
from tokenizers.models import Model

from cramjax.data.kinds import BEGIN, INSIDE, KINDS, SPECIAL_TOKENS, Documents
from cramjax.errors import UserError

# Said aloud, so that the library does not guess (and warn) after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

PAD, CLS, SEP, MASK = (
    SPECIAL_TOKENS.index(t) for t in ("<pad>", "<cls>", "<sep>", "<mask>")
)


# BERT's: no control characters, a space on both sides of every CJK character.
_CLEAN = normalizers.BertNormalizer(
    clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
)
# Behind "clean", which belongs to a kind, the recipe's normaliser, step by step and in
# its order: lower-case ASCII without accents.
STEPS: dict[str, list[normalizers.Normalizer]] = {
    "clean": [_CLEAN],
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


# What "clean" drops of ASCII. Only the white space that stays has to end a word.
_CONTROL = dict.fromkeys({*range(32), 127} - set(map(ord, "\t\n\r")))


def normalize_ascii(text: str, steps: Sequence[str]) -> str:
    """Does to ASCII text what `normalizer` does, but for runs of spaces.

    These separate words however long they are.
    """
    if "clean" in steps:
        text = text.translate(_CONTROL)
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


def all_steps(kind: str, steps: Sequence[str]) -> tuple[str, ...]:
    """Returns the steps of a kind's normaliser: its own, and those of the config."""
    return (*KINDS[kind].steps, *steps)


def train(
    documents: Documents, vocab_size: int, steps: Sequence[str], kind: str
) -> Tokenizer:
    """Trains a tokenizer of exactly `vocab_size` entries.

    Args:
      documents: called for every pass over the text, of which a kind may make two.
      vocab_size: entries, the special tokens included.
      steps: of the normaliser, names in `STEPS`, besides those of the kind.
      kind: a name in `KINDS`.

    Raises:
      UserError: the text has too few different pieces for that size, or too many
        different characters.
    """
    chosen = KINDS[kind]
    untrained = _assembled(kind, steps, chosen.model())
    model = chosen.train(untrained, chosen.trainer, documents, vocab_size)
    words = _assembled(kind, steps, model)
    words.add_special_tokens(list(SPECIAL_TOKENS))
    size = words.get_vocab_size()
    if size < vocab_size:
        raise UserError(
            f"config.model.vocab_size is {vocab_size}: the corpus allows at most "
            f"{size}; pass --config.model.vocab_size={size} or less, or "
            "add text"
        )
    if size > vocab_size:
        raise UserError(
            f"config.model.vocab_size is {vocab_size}: the corpus's characters alone "
            f"need {size}; pass --config.model.vocab_size={size} or more"
        )
    return words


def _assembled(kind: str, steps: Sequence[str], model: Model) -> Tokenizer:
    words = Tokenizer(model)
    words.normalizer = normalizer(all_steps(kind, steps))
    words.pre_tokenizer = KINDS[kind].pre_tokenizer
    words.decoder = KINDS[kind].decoder
    return words


def _prefixed(piece: str) -> tuple[str, bool]:
    inside = piece.startswith(INSIDE) and piece != INSIDE
    return piece[len(INSIDE) * inside :], not inside


def _marked(piece: str) -> tuple[str, bool]:
    return piece.removeprefix(BEGIN), piece.startswith(BEGIN)


SPELLINGS = {decoders.WordPiece: _prefixed, decoders.Metaspace: _marked}


def spellings(words: Tokenizer) -> list[tuple[str, bool]]:
    """Returns, of every entry, its text and whether a word begins with it.

    Special tokens have no text.
    """
    spelling = SPELLINGS[type(words.decoder)]
    ids = range(len(SPECIAL_TOKENS), words.get_vocab_size())
    return [
        *[("", False) for _ in SPECIAL_TOKENS],
        *[spelling(words.id_to_token(i) or "") for i in ids],
    ]


def adopt(path: Path, vocab_size: int, steps: Sequence[str], kind: str) -> str:
    """Returns, as JSON, a tokenizer that was trained before, on another corpus say.

    Raises:
      UserError: it cannot be read, or is another one than the config describes.
    """
    words = load(path, "pass a tokenizer.json of a packed corpus")
    ids = [words.token_to_id(token) for token in SPECIAL_TOKENS]
    expected = _assembled(kind, steps, KINDS[kind].model())
    for ok, what in (
        (
            ids == list(range(len(SPECIAL_TOKENS))),
            f"has not the special tokens {' '.join(SPECIAL_TOKENS)} as its first ones; "
            "the tokenizer.json of a packed corpus has them",
        ),
        (
            words.get_vocab_size() == vocab_size,
            f"has {words.get_vocab_size()} entries, not config.model.vocab_size="
            f"{vocab_size}",
        ),
        (
            _make(words) == _make(expected),
            f"is not what config.data.tokenizer_kind={kind} trains{_other_kind(words)}",
        ),
        (
            str(words.normalizer) == str(expected.normalizer),
            f"was trained with another normaliser than config.data.normalizer={steps}",
        ),
    ):
        if not ok:
            raise UserError(f"config.data.tokenizer: {path} {what}")
    return words.to_str()


def _make(words: Tokenizer) -> dict[str, Any]:
    """Returns all that tells a kind from another, as JSON values."""
    values = json.loads(words.to_str())
    trained = ("vocab", "merges", "unk_id")
    model = {k: v for k, v in values["model"].items() if k not in trained}
    parts = ("truncation", "padding", "pre_tokenizer", "post_processor", "decoder")
    return {"model": model, **{part: values[part] for part in parts}}


def _other_kind(words: Tokenizer) -> str:
    """Returns the flag for the kind that the tokenizer is of, or ""."""
    for name, kind in KINDS.items():
        if _make(words) == _make(_assembled(name, (), kind.model())):
            return f"; pass --config.data.tokenizer_kind={name}"
    return ""


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

"""From text to tokens: normalizer, kinds of tokenizer, training, and encoding.

The recipe's is a WordPiece (arXiv 2212.14034, section 4.4); `KINDS` has others.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.models import Model

from cramjax import files
from cramjax.config.data import IMPORTED
from cramjax.errors import UserError
from cramjax.tokens import SPECIAL_TOKENS

# Set explicitly, so that the library does not guess (and warn) after a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

UNK = "<unk>"
# Names of the special tokens here and elsewhere; only <unk> may be missing.
NAMES = {
    "<pad>": ("<pad>", "[PAD]"),
    "<unk>": ("<unk>", "[UNK]"),
    "<cls>": ("<cls>", "[CLS]"),
    "<sep>": ("<sep>", "[SEP]"),
    "<mask>": ("<mask>", "[MASK]"),
}
INSIDE = "##"  # before the pieces that continue a word
BEGIN = "\u2581"  # before the pieces that begin one

TextFactory = Callable[[], Iterable[str]]  # called once for every pass


@dataclasses.dataclass(frozen=True)
class Kind:
    """The library's parts that make one kind.

    In all of them a space or newline ends a word and is nothing else: no piece goes
    across, so text can be cut there, and the decoded text has single spaces.

    Attributes:
      model: makes an untrained one.
      train: takes an untrained tokenizer, documents and a number of entries. Returns a
        model with as many, the special tokens first; with fewer if the text has no
        more, with more if its characters alone are more.
      pre_tokenizer: text to words.
      decoder: tokens to text; from it `spellings` knows how pieces mark where words
        begin.
      steps: of the normalizer, besides those of the config.
    """

    model: Callable[[], Model]
    train: Callable[[Tokenizer, TextFactory, int], Model]
    decoder: decoders.Decoder
    pre_tokenizer: pre_tokenizers.PreTokenizer
    steps: tuple[str, ...] = ()


def _fit(
    tokenizer: Tokenizer,
    trainer: Callable[..., trainers.Trainer],
    documents: Iterable[str],
    size: int,
    first: Sequence[str] = SPECIAL_TOKENS,
) -> list[str]:
    """Trains `tokenizer`; returns its vocabulary, which begins with `first`."""
    options = {"vocab_size": size, "special_tokens": list(first)}
    tokenizer.train_from_iterator(documents, trainer(show_progress=False, **options))
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def _train(
    trainer: Callable[..., trainers.Trainer],
    tokenizer: Tokenizer,
    documents: TextFactory,
    size: int,
) -> Model:
    _fit(tokenizer, trainer, documents(), size)
    return tokenizer.model


_train_bpe = functools.partial(_train, trainers.BpeTrainer)
_train_wordlevel = functools.partial(_train, trainers.WordLevelTrainer)


def _train_wordpiece(tokenizer: Tokenizer, documents: TextFactory, size: int) -> Model:
    """Makes two passes, so that the same text gives the same pieces.

    The library alone would not do that: it numbers the word-internal characters ("##a")
    in the order of a hash map, and breaks ties between merges by number
    (huggingface/tokenizers, issue 1794). So a first pass finds these characters, and
    the second is given them in a fixed order.
    """
    fit = functools.partial(_fit, tokenizer, trainers.WordPieceTrainer)
    inside = sorted(piece for piece in fit(documents(), 0) if piece.startswith(INSIDE))
    pieces = fit(documents(), size, (*SPECIAL_TOKENS, *inside))
    return models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK)


def _train_unigram(
    tokenizer: Tokenizer, documents: TextFactory, size: int, n_sub_iterations: int = 2
) -> Model:
    """Takes all characters, found in a first pass, and the likeliest longer pieces.

    The library refuses a size that the characters fill, or ignores it, and may prune
    too far: then a goal twice as high prunes less, and the likeliest pieces are taken.

    Its result also depends, twice, on the order of a hash map: in this order, the
    characters that deserve no piece get the lowest score plus steps of 1e-4, and
    probabilities are summed. So here these characters all have the lowest score, and
    scores have four decimals.
    Which pieces are pruned could still depend on a sum's last digit: nothing guarantees
    that the same text gives the same tokenizer, but in hundreds of trials it did.
    """
    trainer = functools.partial(
        trainers.UnigramTrainer, unk_token=UNK, n_sub_iterations=n_sub_iterations
    )
    unigram, tokenizer.model = tokenizer.model, models.BPE()
    special = [(token, 0.0) for token in SPECIAL_TOKENS]
    characters = _fit(tokenizer, trainers.BpeTrainer, documents(), 0)[len(special) :]
    room = size - len(special) - len(characters)
    if room < 0:
        return models.Unigram([*special, *((c, 0.0) for c in characters)])
    tokenizer.model = unigram
    if len(_fit(tokenizer, trainer, documents(), size)) < size:
        _fit(tokenizer, trainer, documents(), 2 * size)
    scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"][len(special) :])
    lowest = min(scores.values(), default=0.0)
    rare = (c for c in characters if scores[c] < lowest + 1e-4 * len(characters))
    scores |= dict.fromkeys(rare, lowest)
    ranked = sorted((-round(score, 4), piece) for piece, score in scores.items())
    longer = [pair for pair in ranked if len(pair[1]) > 1]
    kept = sorted({*ranked} - {*longer[room:]})
    pieces = [(piece, -score) for score, piece in kept]
    return models.Unigram([*special, *pieces], SPECIAL_TOKENS.index(UNK), False)


WORDS = pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
MARK = pre_tokenizers.Metaspace(BEGIN, prepend_scheme="always", split=True)
# Longer words, which a WordPiece reads as <unk>, go through in parts: Unigram's trainer
# crashes at 100,000 characters.
CUT = pre_tokenizers.FixedLength(100)
MARKED_WORDS = pre_tokenizers.Sequence([WORDS, MARK, CUT])
# Words with their punctuation. A "<" that would begin a special token stands alone:
# where "<mask>" could be one word, its pieces could be that token.
_SPELLED = Regex(f"<(?={'|'.join(token[1:] for token in SPECIAL_TOKENS)})")
_APART = pre_tokenizers.Split(_SPELLED, "isolated")
MARKED_CHUNKS = pre_tokenizers.Sequence(
    [_APART, pre_tokenizers.WhitespaceSplit(), MARK, CUT]
)
_PREFIXED = decoders.WordPiece(prefix=INSIDE)
_MARKED = decoders.Metaspace(BEGIN, prepend_scheme="always", split=True)

_wordpiece_model = functools.partial(models.WordPiece, unk_token=UNK)
_wordpiece = functools.partial(Kind, _wordpiece_model, _train_wordpiece, _PREFIXED)
_bpe_model = functools.partial(models.BPE, unk_token=UNK)
_bpe = functools.partial(Kind, _bpe_model, _train_bpe, _MARKED)
_wordlevel_model = functools.partial(models.WordLevel, unk_token=UNK)
# Pieces start from what two different words have in common, so where punctuation is
# apart many are missing or rated too low. With 8 steps between prunings, not 2, 32 MB
# of Wikipedia take 0.226 tokens a character, not 0.261 (BPE: 0.204).
_train_unigram_words = functools.partial(_train_unigram, n_sub_iterations=8)

KINDS: dict[str, Kind] = {
    "wordpiece": _wordpiece(WORDS),
    "bert_wordpiece": _wordpiece(pre_tokenizers.BertPreTokenizer(), ("clean",)),
    "bpe": _bpe(MARKED_WORDS),
    "unigram": Kind(models.Unigram, _train_unigram_words, _MARKED, MARKED_WORDS),
    "sentencepiece_bpe": _bpe(MARKED_CHUNKS),
    "sentencepiece_unigram": Kind(
        models.Unigram, _train_unigram, _MARKED, MARKED_CHUNKS
    ),
    "wordlevel": Kind(_wordlevel_model, _train_wordlevel, _PREFIXED, WORDS),
}


# After "clean", which belongs to a kind, the recipe's normalizer, step by step and in
# its order: lower-case ASCII without accents.
STEPS: dict[str, list[normalizers.Normalizer]] = {
    # BERT's: no control characters, a space on both sides of every CJK character.
    "clean": [normalizers.BertNormalizer(strip_accents=False, lowercase=False)],
    "quotes": [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')],
    "nfd": [normalizers.NFD()],
    "lowercase": [normalizers.Lowercase()],
    "strip_accents": [normalizers.StripAccents()],
    "spaces": [normalizers.Replace(Regex(" {2,}"), " ")],
    "ascii": [normalizers.Replace(Regex(r"[^\x00-\x7F]+"), "")],
}


def normalizer(steps: Sequence[str]) -> normalizers.Normalizer:
    """Returns some of `STEPS`, by their names, in the recipe's order."""
    chosen = [parts for name, parts in STEPS.items() if name in steps]
    return normalizers.Sequence(list(itertools.chain.from_iterable(chosen)))


# What "clean" drops of ASCII. Only the white space that stays has to end a word.
_CONTROL = dict.fromkeys({*range(32), 127} - set(map(ord, "\t\n\r")))


class BatchEncoder:
    """A tokenizer's ids for many texts; ASCII ones are normalised in Python.

    The library's normalizer keeps track of every character's position, which is not
    needed here: without it, encoding ASCII takes 0.6 of the time. The ids are the same.
    """

    def __init__(self, tokenizer: Tokenizer, steps: Sequence[str] | None):
        """Takes what `load` returns, and `all_steps` of its normalizer."""
        self._tokenizer, self._steps = tokenizer, steps
        self._bare = Tokenizer.from_str(tokenizer.to_str())
        self._bare.encode_special_tokens = True
        self._bare.normalizer = normalizers.Sequence([])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns each text's ids, without special tokens."""
        ours = self._steps is not None
        plain = [self._normalized(text) for text in texts if ours and text.isascii()]
        other = [text for text in texts if not (ours and text.isascii())]
        plain = iter(self._bare.encode_batch_fast(plain, add_special_tokens=False))
        other = iter(self._tokenizer.encode_batch_fast(other, add_special_tokens=False))
        return [next(plain if ours and t.isascii() else other).ids for t in texts]

    def _normalized(self, text: str) -> str:
        """Does to ASCII text what `normalizer` does, except to runs of spaces.

        These separate words however long they are. The other steps do nothing to ASCII.
        """
        if "clean" in self._steps:
            text = text.translate(_CONTROL)
        if "quotes" in self._steps:
            text = text.replace("``", '"').replace("''", '"')
        return text.lower() if "lowercase" in self._steps else text


def all_steps(kind: str, steps: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the steps of a kind's normalizer, with those of the config.

    None for an imported tokenizer, which has a normalizer of its own.
    """
    return None if kind == IMPORTED else (*KINDS[kind].steps, *steps)


def train(
    documents: TextFactory, vocab_size: int, steps: Sequence[str], kind: str
) -> Tokenizer:
    """Trains a tokenizer of exactly `vocab_size` entries, special tokens included.

    `documents` is called for every pass over the text; `steps` are of the normalizer,
    besides those of the kind.

    Raises:
      UserError: the text has too few different pieces for that size, or too many
        different characters.
    """
    untrained = _assembled(kind, steps, KINDS[kind].model())
    model = KINDS[kind].train(untrained, documents, vocab_size)
    tokenizer = _assembled(kind, steps, model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        found, way = "the corpus's characters alone need", "or more"
        if size < vocab_size:
            found, way = "the corpus allows at most", "or less, or add text"
        raise UserError(
            f"config.model.vocab_size is {vocab_size}: {found} {size}; pass "
            f"--config.model.vocab_size={size} {way}"
        )
    return tokenizer


def _assembled(kind: str, steps: Sequence[str], model: Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer(all_steps(kind, steps))
    tokenizer.pre_tokenizer = KINDS[kind].pre_tokenizer
    tokenizer.decoder = KINDS[kind].decoder
    return tokenizer


def spellings(tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Returns, of every entry, its text and whether a word begins with it.

    Special tokens have no text.
    """
    prefixed = isinstance(tokenizer.decoder, decoders.WordPiece)
    # A byte-level tokenizer, which may be imported, writes a space as this letter.
    begin = "\u0120" if isinstance(tokenizer.decoder, decoders.ByteLevel) else BEGIN
    spelled = [("", False)] * len(SPECIAL_TOKENS)
    for i in range(len(SPECIAL_TOKENS), tokenizer.get_vocab_size()):
        piece = tokenizer.id_to_token(i) or ""
        if not prefixed:
            spelled.append((piece.removeprefix(begin), piece.startswith(begin)))
        elif piece.startswith(INSIDE) and piece != INSIDE:
            spelled.append((piece.removeprefix(INSIDE), False))
        else:
            spelled.append((piece, True))
    return spelled


def adopt(path: Path, vocab_size: int, steps: Sequence[str], kind: str) -> str:
    """Returns, as JSON, a tokenizer that was trained before, perhaps on another corpus.

    Raises:
      UserError: it cannot be read, or is not the one that the config describes.
    """
    if kind == IMPORTED:
        return imported(path, vocab_size, "see config.data.tokenizer")[0].to_str()
    tokenizer = load(path, "pass a tokenizer.json of a packed corpus")
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    entries, parts, what = tokenizer.get_vocab_size(), _parts(tokenizer), ""
    new = {name: _assembled(name, (), KINDS[name].model()) for name in KINDS}
    found = [name for name in KINDS if _parts(new[name]) == parts]
    if ids != list(range(len(SPECIAL_TOKENS))):
        what = (
            f"does not have the special tokens {' '.join(SPECIAL_TOKENS)} as its first "
            "ones; the tokenizer.json of a packed corpus has them"
        )
    elif entries != vocab_size:
        what = f"has {entries} entries, not config.model.vocab_size={vocab_size}"
    elif kind not in found:
        what = f"is not what config.data.tokenizer_kind={kind} trains"
        what += f"; pass --config.data.tokenizer_kind={found[0]}" if found else ""
    elif str(tokenizer.normalizer) != str(normalizer(all_steps(kind, steps))):
        what = (
            f"was trained with another normalizer than config.data.normalizer={steps}"
        )
    if what:
        raise UserError(f"config.data.tokenizer: {path} {what}")
    return tokenizer.to_str()


def imported(path: Path, vocab_size: int, hint: str) -> tuple[Tokenizer, np.ndarray]:
    """Returns another project's tokenizer with our special ids, and old_ids_V.

    These are each new id's old one. Everything else stays as it is, but text that
    spells a special token is read as plain characters.

    Raises:
      UserError: it cannot be read, has more than `vocab_size` entries, or lacks special
        tokens; the message ends in `hint`.
    """
    content = files.read_json(path, hint)
    content |= {"post_processor": None, "truncation": None, "padding": None}
    try:
        theirs = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} cannot be read ({error}): {hint}") from error
    ids = [*theirs.get_vocab().values(), *(a["id"] for a in content["added_tokens"])]
    if max(ids, default=0) >= vocab_size:
        raise UserError(
            f"{path} has an entry with the id {max(ids):,} and the model's embedding "
            f"{vocab_size:,} rows: {hint}"
        )
    old_ids_V = np.arange(vocab_size)
    for token, names in NAMES.items():
        ids = [theirs.token_to_id(name) for name in names]
        old = next((i for i in ids if i is not None), None)
        if old is not None:
            new = SPECIAL_TOKENS.index(token)
            place = int(np.flatnonzero(old_ids_V == old)[0])
            old_ids_V[[new, place]] = old_ids_V[[place, new]]
        elif token != "<unk>":
            raise UserError(f"{path} has none of the tokens {names}: {hint}")
    new_ids_V = np.argsort(old_ids_V)
    vocab = content["model"]["vocab"]
    if isinstance(vocab, dict):
        # The library would choose ids of its own for added tokens outside of it.
        added_ids = {added["content"]: added["id"] for added in content["added_tokens"]}
        ids = added_ids | vocab
        vocab = {token: int(new_ids_V[i]) for token, i in ids.items()}
    else:  # [[token, score], ...], in the order of their ids
        vocab = [vocab[i] for i in old_ids_V[: len(vocab)]]
        if (unknown := content["model"].get("unk_id")) is not None:
            content["model"]["unk_id"] = int(new_ids_V[unknown])
    content["model"]["vocab"] = vocab
    for added in content["added_tokens"]:
        added["id"] = int(new_ids_V[added["id"]])
    ours = Tokenizer.from_str(json.dumps(content))
    ours.encode_special_tokens = True
    return ours, old_ids_V


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns everything that distinguishes kinds, as JSON values."""
    values = json.loads(tokenizer.to_str())
    trained = ("vocab", "merges", "unk_id")
    model = {k: v for k, v in values["model"].items() if k not in trained}
    parts = ("truncation", "padding", "pre_tokenizer", "post_processor", "decoder")
    return {"model": model, **{part: values[part] for part in parts}}


def content_hash(path: str) -> str:
    """Returns a hash of the file that `config.data.tokenizer` names; "" for none.

    Raises:
      UserError: it cannot be read.
    """
    if not path:
        return ""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"config.data.tokenizer: {path} cannot be read ({error.strerror})"
        ) from error


def load(path: Path, hint: str, crc32: int | None = None) -> Tokenizer:
    """Returns the tokenizer of a packed corpus, if it has this checksum.

    Text that spells a special token, such as "<mask>", is read as plain characters.

    Raises:
      UserError: the file is missing or damaged; the message ends in `hint`.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
        if crc32 not in (None, zlib.crc32(path.read_bytes())):
            raise ValueError("its checksum differs")
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} cannot be read ({error}): {hint}") from error
    tokenizer.encode_special_tokens = True
    return tokenizer

"""The kinds of tokenizer: how each cuts text into words, and words into pieces."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.models import Model

# In the order of their ids: <pad> is 0.
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")
UNK = "<unk>"

INSIDE = "##"  # before the pieces that go on with a word
BEGIN = "\u2581"  # before the pieces that begin one

Documents = Callable[[], Iterable[str]]  # called once for every pass
Trainer = Callable[..., trainers.Trainer]


@dataclasses.dataclass(frozen=True)
class Kind:
    """The library's parts that make one kind.

    In all of them a space or newline ends a word and is nothing else: no piece goes
    across, so text can be cut there, and the decoded text has single spaces.

    Attributes:
      model: an untrained one.
      trainer: of it.
      train: takes the untrained tokenizer, the trainer, documents and a number of
        entries. Returns a model with as many, the special tokens first; with fewer if
        the text has no more, with more if its characters alone are more.
      pre_tokenizer: text to words.
      decoder: tokens to text; tells `tokenizer.spellings` how pieces say where words
        begin.
      steps: of the normaliser, beside those of the config.
    """

    model: Callable[[], Model]
    trainer: Trainer
    train: Callable[[Tokenizer, Trainer, Documents, int], Model]
    pre_tokenizer: pre_tokenizers.PreTokenizer
    decoder: decoders.Decoder
    steps: tuple[str, ...] = ()


def _fit(
    words: Tokenizer,
    trainer: Trainer,
    documents: Iterable[str],
    size: int,
    first: Sequence[str] = SPECIAL_TOKENS,
) -> list[str]:
    """Trains `words`; returns its vocabulary, which begins with `first`."""
    options = {"vocab_size": size, "special_tokens": list(first)}
    words.train_from_iterator(documents, trainer(show_progress=False, **options))
    vocab = words.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def _train_once(words, trainer, documents: Documents, size: int) -> Model:
    _fit(words, trainer, documents(), size)
    return words.model


def _train_wordpiece(words, trainer, documents: Documents, size: int) -> Model:
    """Makes two passes, so that the same text gives the same pieces.

    The library alone would not do that: it numbers the word-internal characters ("##a")
    in the order of a hash map, and breaks ties between merges by number
    (huggingface/tokenizers, issue 1794). So a first pass finds these characters, and
    the second is given them in a fixed order.
    """
    characters = _fit(words, trainer, documents(), 0)[len(SPECIAL_TOKENS) :]
    inside = sorted(piece for piece in characters if piece.startswith(INSIDE))
    pieces = _fit(words, trainer, documents(), size, (*SPECIAL_TOKENS, *inside))
    return models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK)


def _train_unigram(words, trainer, documents: Documents, size: int) -> Model:
    """Takes all characters, found in a first pass, and the likeliest longer pieces.

    The library refuses a size that the characters fill, or ignores it, and may prune
    too far: then a goal twice as high prunes less, and the likeliest pieces are taken.

    It also depends on the order of a hash map twice: in it, characters that deserve no
    piece get the lowest score plus steps of 1e-4, and probabilities are summed up. So
    here these characters all have the lowest score, and scores have four decimals.
    Which pieces are pruned could still hang on a sum's last digit: nothing guarantees
    that the same text gives the same tokenizer, but in hundreds of trials it did.
    """
    unigram, words.model = words.model, models.BPE()
    special = [(token, 0.0) for token in SPECIAL_TOKENS]
    characters = _fit(words, trainers.BpeTrainer, documents(), 0)[len(special) :]
    room = size - len(special) - len(characters)
    if room < 0:
        return models.Unigram([*special, *((c, 0.0) for c in characters)])
    words.model = unigram
    if len(_fit(words, trainer, documents(), size)) < size:
        _fit(words, trainer, documents(), 2 * size)
    scores = dict(json.loads(words.to_str())["model"]["vocab"][len(special) :])
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
_SPELLED = "|".join(token[1:] for token in SPECIAL_TOKENS)
MARKED_CHUNKS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(f"<(?={_SPELLED})"), "isolated"),
        pre_tokenizers.WhitespaceSplit(),
        MARK,
        CUT,
    ]
)

_wordpiece = functools.partial(
    Kind,
    model=functools.partial(models.WordPiece, unk_token=UNK),
    trainer=trainers.WordPieceTrainer,
    train=_train_wordpiece,
    decoder=decoders.WordPiece(prefix=INSIDE),
)
_bpe = functools.partial(
    Kind,
    model=functools.partial(models.BPE, unk_token=UNK),
    trainer=trainers.BpeTrainer,
    train=_train_once,
    decoder=decoders.Metaspace(BEGIN, prepend_scheme="always", split=True),
)
_unigram = functools.partial(
    Kind,
    model=models.Unigram,
    trainer=functools.partial(trainers.UnigramTrainer, unk_token=UNK),
    train=_train_unigram,
    decoder=decoders.Metaspace(BEGIN, prepend_scheme="always", split=True),
)

KINDS: dict[str, Kind] = {
    "wordpiece": _wordpiece(pre_tokenizer=WORDS),
    "bert_wordpiece": _wordpiece(
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(), steps=("clean",)
    ),
    "bpe": _bpe(pre_tokenizer=MARKED_WORDS),
    "unigram": _unigram(
        # Pieces start from what two different words share, so where punctuation is
        # apart many are missing or rated too low. With 8 steps between prunings, not 2,
        # 32 MB of Wikipedia take 0.226 tokens a character, not 0.261 (BPE: 0.204).
        trainer=functools.partial(
            trainers.UnigramTrainer, unk_token=UNK, n_sub_iterations=8
        ),
        pre_tokenizer=MARKED_WORDS,
    ),
    "sentencepiece_bpe": _bpe(pre_tokenizer=MARKED_CHUNKS),
    "sentencepiece_unigram": _unigram(pre_tokenizer=MARKED_CHUNKS),
    "wordlevel": Kind(
        model=functools.partial(models.WordLevel, unk_token=UNK),
        trainer=trainers.WordLevelTrainer,
        train=_train_once,
        pre_tokenizer=WORDS,
        decoder=decoders.WordPiece(prefix=INSIDE),
    ),
}

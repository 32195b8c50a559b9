"""Word order: what a little pretraining teaches beyond the frequencies of words.

A sentence of held-out text is compared with the same sentence with two neighbouring
words swapped, after the bigram shift of SentEval (Conneau et al. 2018, arXiv
1805.01070). The score is how often a model finds the original more likely; chance is
50 %.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cramjax import likelihood
from cramjax.config import Config
from cramjax.data import tokenizer
from cramjax.data.corpus import Blocks, Corpus
from cramjax.model.encoder import on_any_device
from cramjax.tokens import CLS, SEP, SPECIAL_TOKENS

PAIRS = 400
MIN_PAIRS = 50  # with fewer the interval is wider than +-14 points
WORDS = range(6, 17)  # in a sentence, without punctuation marks
MAX_LENGTH = 32  # tokens of a row, special ones included: all rows have one shape
KEY = 16  # of the places: the same for every run, whatever its seed
# Text is read in stretches of consecutive blocks: the maximum number of tokens in all,
# and in a stretch. Sentences are held-out text, bigrams are counted in training text.
HELD_OUT_TOKENS, HELD_OUT_STRETCH = 1 << 19, 1 << 12
TRAIN_TOKENS, TRAIN_STRETCH = 50_000_000, 1 << 18
PRIOR = 100.0  # of the bigram model's smoothing, see `bigram_log_likelihoods`

Sentence = list[int]  # its tokens
_END = re.compile(r"""[.!?]["'”’)\]]*$""")


def score(config: Config, params: Any, corpus: Corpus) -> dict[str, Any] | None:
    """Scores parameters of `encoder.MaskedLM` on sentences of the held-out part.

    Returns:
      {"model", "bigram" (how often each prefers the original, in percent), "pairs"
      (their number)}; None if the held-out part has fewer than `MIN_PAIRS`.
    """
    longest = min(MAX_LENGTH, config.model.max_length)
    pairs = make_pairs(corpus, longest - 2, PAIRS)
    if len(pairs) < MIN_PAIRS:
        return None
    sentences = [sentence for pair in pairs for sentence in pair]
    first = CLS if config.data.cls else SEP  # as in pretraining
    scores_N = likelihood.pseudo_log_likelihoods(
        on_any_device(config.model),
        params,
        [[first, *sentence, SEP] for sentence in sentences],
        length_step=longest,
    )
    bigram_N = bigram_log_likelihoods(
        corpus.train, sentences, corpus.manifest["vocab_size"]
    )
    return {
        "model": likelihood.percent_preferred(scores_N),
        "bigram": likelihood.percent_preferred(bigram_N),
        "pairs": len(pairs),
    }


def margin(percent: float, pairs: int) -> float:
    """Returns half the width of the 95 % interval of a score, binomial, in points."""
    return 1.96 * math.sqrt(percent * (100 - percent) / pairs)


def line(found: Mapping[str, Any] | None) -> str:
    """Returns a sentence about what `score` returned."""
    if found is None:
        return (
            f"word order: not scored, for want of {MIN_PAIRS} held-out sentences of "
            f"{WORDS[0]} to {WORDS[-1]} words"
        )
    percent, pairs = found["model"], found["pairs"]
    return (
        f"word order: the model finds {percent:.1f} % (+-{margin(percent, pairs):.1f}) "
        f"of {pairs} held-out sentences likelier than the same with two neighbouring "
        f"words swapped (bigram model {found['bigram']:.1f} %, chance 50 %)"
    )


def make_pairs(
    corpus: Corpus, max_tokens: int, max_pairs: int
) -> list[tuple[Sentence, Sentence]]:
    """Returns pairs: a sentence, and the same with two neighbouring words swapped.

    Sentences are spread evenly over the held-out text; each ends in a full stop,
    exclamation or question mark, and has at most `max_tokens`. The two words differ.
    """
    spelled = tokenizer.spellings(corpus.tokenizer)
    found = []
    for tokens_N in _stretches(corpus.held_out, HELD_OUT_TOKENS, HELD_OUT_STRETCH):
        for sentence in _sentences(_words(tokens_N, spelled)):
            places = _places(sentence)
            size = sum(len(tokens) for _, tokens in sentence)
            if places and size <= max_tokens:
                found.append(([tokens for _, tokens in sentence], places))
    chosen = np.linspace(0, len(found) - 1, min(max_pairs, len(found))).astype(int)
    generator = np.random.Generator(np.random.Philox(key=KEY))
    pairs = []
    for number in chosen:
        words, places = found[number]
        place = generator.choice(places)
        swapped = list(words)
        swapped[place : place + 2] = words[place + 1], words[place]
        pairs.append((sum(words, []), sum(swapped, [])))
    return pairs


def bigram_log_likelihoods(
    blocks: Blocks, sentences: Sequence[Sentence], vocab_size: int
) -> np.ndarray:
    """Returns log-probabilities_N of sentences under a bigram model of tokens.

    P(b|a) = (count(ab) + `PRIOR` P(b)) / (count(a) + `PRIOR`): counts are interpolated
    with the frequencies P(b), the more the rarer a is (a Dirichlet prior: MacKay and
    Peto 1995). Frequencies have 1 added to every count; the first token has P(b) alone.
    At most `TRAIN_TOKENS` are counted, evenly spread over the blocks, and only the
    sentences' bigrams, so that memory does not grow with the square of the vocabulary.
    """
    pairs_S = [np.array([s[:-1], s[1:]], np.int64) for s in sentences]
    needed = np.unique(np.concatenate([a * vocab_size + b for a, b in pairs_S]))
    count_V, count_K = np.zeros(vocab_size, np.int64), np.zeros(len(needed), np.int64)
    for tokens_N in _stretches(blocks, TRAIN_TOKENS, TRAIN_STRETCH):
        count_V += np.bincount(tokens_N, minlength=vocab_size)
        codes_N = tokens_N[:-1].astype(np.int64) * vocab_size + tokens_N[1:]
        place_N = np.minimum(np.searchsorted(needed, codes_N), len(needed) - 1)
        hits = place_N[needed[place_N] == codes_N]
        count_K += np.bincount(hits, minlength=len(needed))
    unigram_V = (count_V + 1) / (count_V.sum() + vocab_size)

    def log_likelihood(a, b):
        count = count_K[np.searchsorted(needed, a * vocab_size + b)]
        bigram = (count + PRIOR * unigram_V[b]) / (count_V[a] + PRIOR)
        return np.log(unigram_V[a[0]]) + np.log(bigram).sum()

    return np.array([log_likelihood(a, b) for a, b in pairs_S])


def _stretches(blocks: Blocks, max_tokens: int, stretch: int) -> Iterator[np.ndarray]:
    """Yields tokens_N of consecutive blocks, evenly spread over all."""
    size = max(stretch // blocks.length, 1)
    starts = np.arange(0, len(blocks), size)
    count = max(min(len(starts), max_tokens // (size * blocks.length)), 1)
    for start in starts[np.linspace(0, len(starts) - 1, count).astype(int)]:
        rows_B = np.arange(start, min(start + size, len(blocks)))
        yield blocks.take(rows_B).ravel()


def _words(
    tokens_N: np.ndarray, spelled: Sequence[tuple[str, bool]]
) -> Iterator[tuple[str, list[int]]]:
    """Yields (text, tokens) of words and punctuation marks; a special token's is ""."""
    text, tokens = "", []
    for token in tokens_N.tolist():
        piece, begins = spelled[token]
        special = token < len(SPECIAL_TOKENS)
        if tokens and (begins or special or tokens[0] < len(SPECIAL_TOKENS)):
            yield text, tokens
            text, tokens = "", []
        text += piece
        tokens.append(token)
    # The last word may continue in a block that was not read.


def _sentences(
    words: Iterable[tuple[str, list[int]]],
) -> Iterator[list[tuple[str, list[int]]]]:
    """Yields sentences that were read from beginning to end.

    Quotation marks and brackets before the first word are left out, because some of
    them close the previous sentence.
    """
    sentence = None  # the text begins in the middle of one
    for text, tokens in words:
        if tokens[0] < len(SPECIAL_TOKENS):
            sentence = [] if tokens[0] in (CLS, SEP) else None
            continue
        if sentence is not None and (sentence or re.search(r"\w", text)):
            sentence.append((text, tokens))
        if _END.search(text):
            if sentence:
                yield sentence
            sentence = []


def _places(sentence: list[tuple[str, list[int]]]) -> list[int]:
    """Returns the positions of words that may be swapped with the next word."""
    words = [text for text, _ in sentence]
    if sum(bool(re.search(r"\w", word)) for word in words) not in WORDS:
        return []
    return [
        i
        for i, (a, b) in enumerate(zip(words[:-1], words[1:], strict=True))
        if a.isalnum() and b.isalnum() and a != b
    ]

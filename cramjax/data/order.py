"""Orders in which training visits the blocks: permutations, never copies."""

import contextlib
import functools
import re
from collections.abc import Callable

import numpy as np

from cramjax import files
from cramjax.data.corpus import Corpus
from cramjax.data.tokenizer import BEGIN, spellings
from cramjax.tokens import SEP


class BlockStream:
    """Training blocks; the next ones depend on the position alone.

    Position i is block i of epoch 0, in its order; after the last block epoch 1 begins,
    reshuffled by (seed, 1), and so on.
    """

    def __init__(self, corpus: Corpus, order: str, seed: int):
        """Computes the permutation of epoch 0."""
        self._blocks, self._seed = corpus.train, seed
        self._first = first_epoch(corpus, order, seed)

    def take(self, position: int, rows: int) -> np.ndarray:
        """Returns tokens_BxL of the `rows` blocks from `position` on."""
        parts, total = [], len(self._blocks)
        while rows:
            epoch, offset = divmod(position, total)
            count = min(rows, total - offset)
            permutation = reshuffled(total, self._seed, epoch) if epoch else self._first
            parts.append(permutation[offset : offset + count])
            position, rows = position + count, rows - count
        return self._blocks.take(np.concatenate(parts))


# A period alone; or after a word, where a tokenizer keeps them together.
PERIOD = re.compile(f"{BEGIN}?(.*\\w)?\\.")


def _periods(corpus: Corpus) -> np.ndarray:
    """Counts ".": short sentences come first (arXiv 2212.14034, section 4.4)."""
    pieces = map(corpus.tokenizer.id_to_token, range(corpus.manifest["vocab_size"]))
    return np.array([bool(PERIOD.fullmatch(piece or "")) for piece in pieces], float)


def _fragments(corpus: Corpus) -> np.ndarray:
    """Counts the ends of documents: short documents come first."""
    scores_V = np.zeros(corpus.manifest["vocab_size"])
    scores_V[SEP] = 1
    return scores_V


def _unigram(corpus: Corpus) -> np.ndarray:
    """Adds log-probabilities of the training blocks: likely text comes first."""
    counts_V = corpus.train.token_counts(corpus.manifest["vocab_size"])
    return np.log(np.maximum(counts_V, 1) / counts_V.sum())


def _decoded_length(corpus: Corpus) -> np.ndarray:
    """Returns minus the characters of each token: blocks of short words come first."""
    spelled = spellings(corpus.tokenizer)
    return -np.array([len(text) + begins for text, begins in spelled], float)


# {order: from a corpus to scores_V}; blocks are sorted by the sum of their tokens'
# scores, highest first.
TOKEN_SCORES: dict[str, Callable[[Corpus], np.ndarray]] = {
    "sentence_length": _periods,
    "fragments": _fragments,
    "unigram": _unigram,
    "unigram_reversed": lambda corpus: -_unigram(corpus),
    "decoded_length": _decoded_length,
}


def first_epoch(corpus: Corpus, order: str, seed: int) -> np.ndarray:
    """Returns the permutation of the training blocks in epoch 0.

    The order is "stored", "random" (by the seed), or one of `TOKEN_SCORES`, which is
    computed once and kept beside the blocks.
    """
    blocks = corpus.train
    if order == "stored":
        return np.arange(len(blocks))
    if order == "random":
        return reshuffled(len(blocks), seed, 0)
    path = corpus.path / f"order-{order}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # damaged: made again
        known, count = np.load(path, mmap_mode="r"), len(blocks)
        if known.sum(dtype=np.int64) == count * (count - 1) // 2:  # of 0 to count - 1
            return known
    scores_V = TOKEN_SCORES[order](corpus)
    scores = [scores_V[tokens_NxL].sum(axis=1) for tokens_NxL in blocks.chunks()]
    permutation = np.argsort(-np.concatenate(scores), kind="stable")
    # Kept for the next run, if the folder can be written.
    with contextlib.suppress(OSError):
        files.save_array(path, permutation.astype(np.uint32))
    return permutation


@functools.lru_cache(maxsize=1)
def reshuffled(blocks: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a random permutation that depends on (seed, epoch) alone."""
    bits = np.random.Philox(key=[seed, epoch])
    return np.random.Generator(bits).permutation(blocks)

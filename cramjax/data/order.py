"""Orders in which training visits the blocks: permutations, never copies."""

import contextlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from cramjax import files
from cramjax.data.corpus import Blocks, Corpus
from cramjax.data.tokenizer import BEGIN, spellings
from cramjax.tokens import SEP


class BlockStream:
    """Training batches; the next one depends on the position alone.

    Position i is block i of the first pass, in its order; after the last block the
    second pass begins, reshuffled by (seed, 1), and so on.
    """

    def __init__(self, corpus: Corpus, order: str, seed: int):
        """Keeps one pass's permutation at a time."""
        self._blocks = corpus.train
        self._seed = seed
        self._epoch = 0
        self._permutation = self._first = first_pass(corpus, order, seed)

    def batch(self, position: int, rows: int) -> np.ndarray:
        """Returns uint16 tokens_BxL of the `rows` blocks from `position` on."""
        parts = []
        while rows:
            epoch, offset = divmod(position, len(self._blocks))
            count = min(rows, len(self._blocks) - offset)
            parts.append(self._order(epoch)[offset : offset + count])
            position, rows = position + count, rows - count
        return self._blocks.take(np.concatenate(parts))

    def _order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = (
                reshuffled(len(self._blocks), self._seed, epoch)
                if epoch
                else self._first
            )
        return self._permutation


# A period alone; or after a word, where a tokenizer keeps them together.
PERIOD = re.compile(f"{BEGIN}?(.*\\w)?\\.")


def _periods(corpus: Corpus) -> np.ndarray:
    """Counts ".": short sentences come first (arXiv 2212.14034, section 4.4)."""
    pieces = map(corpus.tokenizer.id_to_token, range(corpus.manifest["vocab_size"]))
    return np.array([bool(PERIOD.fullmatch(piece or "")) for piece in pieces], float)


def _fragments(corpus: Corpus) -> np.ndarray:
    """Counts the ends of documents: short documents come first."""
    values_V = np.zeros(corpus.manifest["vocab_size"])
    values_V[SEP] = 1
    return values_V


def _unigram(corpus: Corpus) -> np.ndarray:
    """Adds log-probabilities of the training blocks: likely text comes first."""
    counts_V = np.zeros(corpus.manifest["vocab_size"])
    for chunk_NxL in _chunks(corpus.train):
        counts_V += np.bincount(chunk_NxL.ravel(), minlength=len(counts_V))
    return np.log(np.maximum(counts_V, 1) / counts_V.sum())


def _decoded_length(corpus: Corpus) -> np.ndarray:
    """Subtracts characters of decoded text: blocks of short words come first."""
    spelled = spellings(corpus.tokenizer)
    return -np.array([len(text) + begins for text, begins in spelled], float)


# {order: values_V}; blocks are sorted by the sum of their tokens' values, most first.
VALUES: dict[str, Callable[[Corpus], np.ndarray]] = {
    "sentence_length": _periods,
    "fragments": _fragments,
    "unigram": _unigram,
    "unigram_reversed": lambda corpus: -_unigram(corpus),
    "decoded_length": _decoded_length,
}


def first_pass(corpus: Corpus, order: str, seed: int) -> np.ndarray:
    """Returns the permutation of the training blocks for the first pass.

    Args:
      corpus: the packed corpus.
      order: "stored", "random", or one of `VALUES`, which is computed once and kept
        beside the blocks.
      seed: of "random".
    """
    blocks = corpus.train
    if order == "stored":
        return np.arange(len(blocks))
    if order == "random":
        return reshuffled(len(blocks), seed, 0)
    path = corpus.path / f"order-{order}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # damaged: made again
        kept = np.load(path, mmap_mode="r")
        if kept.shape == (len(blocks),) and _is_permutation(kept):
            return kept
    values_V = VALUES[order](corpus)
    scores = [values_V[chunk_NxL].sum(axis=1) for chunk_NxL in _chunks(blocks)]
    permutation = np.argsort(-np.concatenate(scores), kind="stable")
    # Kept for the next run, if the folder can be written.
    with contextlib.suppress(OSError), files.replacing(path) as file:
        np.save(file, permutation.astype(np.uint32))
    return permutation


def _is_permutation(rows_N: np.ndarray) -> bool:
    seen_N = np.zeros(len(rows_N), bool)
    seen_N[rows_N[rows_N < len(rows_N)]] = True
    return bool(seen_N.all())


def _chunks(blocks: Blocks, rows: int = 1 << 14) -> Iterator[np.ndarray]:
    for start in range(0, len(blocks), rows):
        yield blocks.take(np.arange(start, min(start + rows, len(blocks))))


def reshuffled(blocks: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a random permutation that depends on (seed, epoch) alone."""
    bits = np.random.Philox(key=[seed, epoch])
    return np.random.Generator(bits).permutation(blocks)

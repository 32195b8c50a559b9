"""Orders in which training visits the blocks: permutations, never copies."""

import numpy as np

from cramjax import files
from cramjax.data.corpus import Blocks, Corpus


class BlockStream:
    """Training batches; the next one depends on the position alone.

    Position i is block i of the first pass, in its order; behind the last block begins
    the second pass, reshuffled by (seed, 1), and so on.
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
            here = min(rows, len(self._blocks) - offset)
            parts.append(self._order(epoch)[offset : offset + here])
            position, rows = position + here, rows - here
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


def first_pass(corpus: Corpus, order: str, seed: int) -> np.ndarray:
    """Returns the permutation of the training blocks for the first pass.

    Args:
      corpus: the packed corpus.
      order: "stored", "random", or "sentence_length": most "." tokens first, so that
        short sentences come first (arXiv 2212.14034, section 4.4). The last one is
        computed once and kept beside the blocks.
      seed: of "random".
    """
    blocks = corpus.train
    if order == "stored":
        return np.arange(len(blocks))
    if order == "random":
        return reshuffled(len(blocks), seed, 0)
    path = corpus.path / "order-sentence_length.npy"
    if not path.exists():
        period = corpus.tokenizer.token_to_id(".")
        order = np.argsort(-_count_token(blocks, period), kind="stable")
        with files.replacing(path) as file:
            np.save(file, order.astype(np.uint32))
    return np.load(path, mmap_mode="r")


def reshuffled(blocks: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a random permutation that depends on (seed, epoch) alone."""
    bits = np.random.Philox(key=[seed, epoch])
    return np.random.Generator(bits).permutation(blocks)


def _count_token(blocks: Blocks, token: int | None, rows: int = 65536) -> np.ndarray:
    counts = np.zeros(len(blocks), np.int16)
    if token is not None:
        for start in range(0, len(blocks), rows):
            stop = min(start + rows, len(blocks))
            chunk_NxL = blocks.take(np.arange(start, stop))
            counts[start:stop] = (chunk_NxL == token).sum(axis=1)
    return counts

"""How fast batches can be read; without JAX, whose memory is not the data's."""

import time

from cramjax.data.corpus import Corpus
from cramjax.data.ordering import BlockStream

ROWS = 128


def read_speed(corpus: Corpus, order: str, seed: int, seconds: float) -> float:
    """Returns tokens/s of reading batches of ROWS blocks, one after the other."""
    stream = BlockStream(corpus, order, seed)
    stream.batch(0, ROWS)
    start, position = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        stream.batch(position, ROWS)
        position += ROWS
    return position * corpus.train.length / (time.monotonic() - start)

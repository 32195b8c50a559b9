"""From token ids to blocks of equal length, in shards on disk."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHARD_BLOCKS = 1 << 18  # 64 MiB at 128 tokens of 2 bytes


class BlockWriter:
    """Concatenates documents and cuts them into blocks; the last partial one is lost.

    Writes `<prefix>-00000.bin`, `<prefix>-00001.bin`, ... of little-endian uint16.

    Attributes:
      token_counts_V: how often each token was written.
    """

    def __init__(self, folder: Path, prefix: str, length: int, vocab_size: int):
        """Opens nothing until a shard is full."""
        self._folder, self._prefix, self._length = folder, prefix, length
        self._buffer = array("H")
        self._shard_blocks: list[int] = []
        self.token_counts_V = np.zeros(vocab_size, np.int64)

    def add(self, ids: Sequence[int]) -> None:
        """Appends one document, its final <sep> included."""
        self._buffer.extend(ids)
        if len(self._buffer) >= SHARD_BLOCKS * self._length:
            self._write(SHARD_BLOCKS)

    def close(self) -> list[int]:
        """Writes what is left; returns the number of blocks in each shard."""
        if blocks := len(self._buffer) // self._length:
            self._write(blocks)
        return self._shard_blocks

    def _write(self, blocks: int) -> None:
        tokens = np.frombuffer(self._buffer, np.uint16)[: blocks * self._length]
        self.token_counts_V += np.bincount(tokens, minlength=self.token_counts_V.size)
        name = f"{self._prefix}-{len(self._shard_blocks):05d}.bin"
        tokens.astype("<u2").tofile(self._folder / name)
        self._shard_blocks.append(blocks)
        rest = tokens.size
        del tokens
        self._buffer = self._buffer[rest:]

"""From token ids to blocks of equal length: one shard, in a file of its own."""

import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramjax import files


def token_dtype(vocab_size: int) -> str:
    """Returns the type of stored tokens: 2 bytes as long as they fit, else 4."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class ShardWriter:
    """Concatenates documents and cuts them into blocks; the last partial one is lost.

    Attributes:
      token_counts_V: how often each token was written, after `write`.
    """

    def __init__(self, length: int, vocab_size: int):
        """Keeps the shard in memory until it is written."""
        self._length = length
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._buffer = array("H" if self._dtype.itemsize == 2 else "I")
        self.token_counts_V = np.zeros(vocab_size, np.int64)

    def add(self, ids: Sequence[int]) -> None:
        """Appends a part of a document."""
        self._buffer.extend(ids)

    def write(self, path: Path) -> dict[str, Any]:
        """Writes the shard; returns {"file", "blocks", "crc32"}."""
        blocks = len(self._buffer) // self._length
        tokens = np.frombuffer(self._buffer, self._dtype.newbyteorder("="))
        tokens = tokens[: blocks * self._length]
        for start in range(0, len(tokens), 1 << 20):  # bincount makes an int64 copy
            some = tokens[start : start + (1 << 20)]
            self.token_counts_V += np.bincount(some, minlength=len(self.token_counts_V))
        data = tokens.astype(self._dtype, copy=False).data
        files.write_bytes(path, data)
        return {"file": path.name, "blocks": blocks, "crc32": zlib.crc32(data)}


def crc32(path: Path) -> int:
    """Returns the checksum of a file, read a piece at a time."""
    value = 0
    with path.open("rb") as file:
        while data := file.read(1 << 24):
            value = zlib.crc32(data, value)
    return value

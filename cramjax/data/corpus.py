"""The packed corpus on disk: memory-mapped blocks, tokenizer and manifest."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax import files
from cramjax.data import tokenizer
from cramjax.errors import UserError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


class Blocks:
    """Rows of L tokens over one or more memory-mapped shards, as uint16."""

    def __init__(self, folder: Path, prefix: str, shard_blocks: list[int], length: int):
        """Maps the shards.

        Raises:
          UserError: a shard is missing or of another size than the manifest says.
        """
        self.length = length
        self._ends = np.cumsum(shard_blocks)
        self._shards = []
        for i, blocks in enumerate(shard_blocks):
            path = folder / f"{prefix}-{i:05d}.bin"
            size = blocks * length * 2
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(
                    f"{path} is not the {size} bytes its manifest promises: delete "
                    f"{folder} and run again to rebuild it"
                )
            self._shards.append(np.memmap(path, "<u2", "r", shape=(blocks, length)))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """Returns tokens_NxL, a copy."""
        if len(self._shards) == 1:
            return np.asarray(self._shards[0][rows_N])
        tokens_NxL = np.empty((len(rows_N), self.length), np.uint16)
        shard_N = np.searchsorted(self._ends, rows_N, side="right")
        for shard in np.unique(shard_N):
            here_N = shard_N == shard
            start = self._ends[shard - 1] if shard else 0
            tokens_NxL[here_N] = self._shards[shard][rows_N[here_N] - start]
        return tokens_NxL


class Corpus:
    """A packed corpus as `prepare` left it.

    Attributes:
      path: its folder.
      manifest: counts, settings and sources; see `prepare.prepare`.
      train: the training blocks, in stored order.
      held_out: the blocks of the held-out documents.
      tokenizer: the one they were made with.
    """

    def __init__(self, path: Path):
        """Opens a corpus.

        Raises:
          UserError: the manifest or tokenizer cannot be read, or the files do not fit.
        """
        self.path = path
        rebuild = f"delete {path} and run again to rebuild it"
        self.manifest: dict[str, Any] = files.read_json(path / MANIFEST, rebuild)
        length, shards = self.manifest["block_length"], self.manifest["shards"]
        self.train = Blocks(path, "blocks", shards["blocks"], length)
        self.held_out = Blocks(path, "held_out", shards["held_out"], length)
        self.tokenizer: Tokenizer = tokenizer.load(path / TOKENIZER, rebuild)

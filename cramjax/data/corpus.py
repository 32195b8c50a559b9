"""The packed corpus on disk: memory-mapped blocks, tokenizer and manifest."""

import json
import math
import resource
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax import files
from cramjax.data import packing, tokenizer
from cramjax.errors import UserError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


class Blocks:
    """Rows of L tokens over memory-mapped shards."""

    def __init__(
        self, folder: Path, shards: list[dict[str, Any]], length: int, dtype: str
    ):
        """Maps the shards.

        Args:
          folder: where they are.
          shards: {"file", "blocks", "crc32"} of each.
          length: tokens in a block.
          dtype: of the tokens.

        Raises:
          UserError: a shard is missing or of another size than the manifest says.
        """
        self.length, self._dtype = length, np.dtype(dtype)
        self._folder, self._facts = folder, [s for s in shards if s["blocks"]]
        self._ends = np.cumsum([shard["blocks"] for shard in self._facts])
        self._shards = []
        _allow_open_files(2 * len(self._facts))
        for shard in self._facts:
            path, shape = folder / shard["file"], (shard["blocks"], length)
            size = math.prod(shape) * self._dtype.itemsize
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(
                    f"{path} is not the {size} bytes its manifest promises: delete "
                    f"{folder} and run again to rebuild it"
                )
            self._shards.append(np.memmap(path, self._dtype, "r", shape=shape))

    def verify(self) -> None:
        """Reads every shard once.

        Raises:
          UserError: one is not what was written.
        """
        for shard in self._facts:
            path = self._folder / shard["file"]
            if packing.crc32(path) != shard.get("crc32"):
                raise UserError(
                    f"{path} is damaged, its checksum is not the manifest's: delete "
                    f"{self._folder} and run again to rebuild it"
                )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """Returns tokens_NxL, a copy."""
        if len(self._shards) == 1:
            return np.asarray(self._shards[0][rows_N])
        tokens_NxL = np.empty((len(rows_N), self.length), self._dtype)
        shard_N = np.searchsorted(self._ends, rows_N, side="right")
        for shard in np.unique(shard_N):
            here_N = shard_N == shard
            start = self._ends[shard - 1] if shard else 0
            tokens_NxL[here_N] = self._shards[shard][rows_N[here_N] - start]
        return tokens_NxL


def checksum(manifest: Mapping[str, Any]) -> int:
    """Returns what a manifest's "checksum" has to be."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _allow_open_files(count: int) -> None:
    """Raises the process's limit: a memory map keeps its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = soft + count
    if hard == resource.RLIM_INFINITY or needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    elif soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
        if self.manifest.get("checksum") != checksum(self.manifest):
            raise UserError(f"{path / MANIFEST} is damaged (its checksum): {rebuild}")
        try:
            self.train, self.held_out = (
                Blocks(
                    path,
                    self.manifest["shards"][part],
                    self.manifest["block_length"],
                    self.manifest["dtype"],
                )
                for part in ("blocks", "held_out")
            )
        except (LookupError, TypeError) as error:
            raise UserError(
                f"{path / MANIFEST} is damaged ({error!r}): {rebuild}"
            ) from error
        self.tokenizer: Tokenizer = tokenizer.load(path / TOKENIZER, rebuild)

    def verify(self) -> None:
        """Compares every shard with its checksum.

        Raises:
          UserError: one is damaged.
        """
        self.train.verify()
        self.held_out.verify()
        words = self.path / TOKENIZER
        if packing.crc32(words) != self.manifest["tokenizer_crc32"]:
            raise UserError(
                f"{words} is damaged, its checksum is not the manifest's: delete "
                f"{self.path} and run again to rebuild it"
            )

"""Where text comes from: `config.data.sources` as files, local or remote."""

import concurrent.futures
import dataclasses
import glob
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cramjax import files
from cramjax.config import DataConfig, require
from cramjax.data import readers, remote, stages, tfds
from cramjax.data.readers import File
from cramjax.errors import UserError

GROUP_BYTES = 1 << 24  # smaller files are read together
MIN_CHARS = 1 << 13  # of a file, where a limit would leave each of them less
EMBEDDED = {"embedded:books": "demo/books.txt.xz"}


class Fingerprints:
    """Hashes of files and answers of servers, remembered in `data.dir`.

    A file's content is read once: as long as its size and modification time stay the
    same, the remembered hash is returned. A server's answer about its files, such as
    the newest commit of a data set, is remembered for good; delete the file to ask
    again.

    Attributes:
      entries: {path or URL: what is remembered of it, as JSON values}.
    """

    def __init__(self, data_dir: str):
        """Reads what is remembered."""
        self._path = Path(data_dir).expanduser() / remote.CACHE
        try:
            self.entries: dict[str, Any] = files.read_json(self._path, "")
        except UserError:  # a cache: made again
            self.entries = {}
        self._saved = dict(self.entries)

    def knows(self, path: Path) -> bool:
        """Returns whether the hash of a file, as it is now, is remembered."""
        stat = path.stat()
        return self.entries.get(str(path), [])[:2] == [stat.st_size, stat.st_mtime_ns]

    def sha256(self, path: Path) -> str:
        """Returns the hash of a file, for which it may read the whole file.

        Raises:
          UserError: the file cannot be read.
        """
        try:
            if not self.knows(path):
                stat = path.stat()  # of before it is read
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.entries[str(path)] = [stat.st_size, stat.st_mtime_ns, sha256]
        except OSError as error:
            raise UserError(
                f"config.data.sources: {path} cannot be read ({error.strerror})"
            ) from error
        return self.entries[str(path)][2]

    def save(self) -> None:
        """Writes what has changed."""
        if self.entries != self._saved:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_record(self._path, self.entries)


def resolve(data: DataConfig) -> list[File]:
    """Returns the files that `config.data.sources` names, in order.

    `data.max_chars` and `data.max_documents` are spread over the files: over the
    sources by `data.shares`, or by their bytes; within a source by bytes. Of every file
    the beginning is taken, and the rest of it is not downloaded. Of very many small
    files only some are taken.

    Raises:
      UserError: there is no file, a name matches nothing, a suffix is unknown, or a
        server cannot be reached.
      OSError: the answers of servers cannot be remembered in `data.dir`.
    """
    require(
        len(data.sources) > 0,
        "data.sources",
        data.sources,
        "the text to train on, e.g. --config.data.sources=\"('texts/*.txt.gz',)\"",
    )
    cache = Fingerprints(data.dir)
    groups = [_find(source, data.split, cache) for source in data.sources]
    cache.save()
    weights = _weights(groups, data.shares)
    numbered = [(source, file) for source, group in enumerate(groups) for file in group]
    return [
        dataclasses.replace(
            file, source=source, weight=weight, max_chars=chars, max_documents=documents
        )
        for (source, file), weight, chars, documents in zip(
            numbered,
            weights,
            spread(data.max_chars, weights),
            spread(data.max_documents, weights, 1),
            strict=True,
        )
    ]


def contents(found: Sequence[File], data: DataConfig) -> list[dict[str, Any]]:
    """Returns {"path", "bytes", "sha256"} of all files; new local ones are read.

    They are hashed on all cores.

    Raises:
      UserError: a file cannot be read.
      OSError: the hashes cannot be remembered in `data.dir`.
    """
    cache = Fingerprints(data.dir)
    with concurrent.futures.ThreadPoolExecutor(stages.cores()) as pool:
        digests = pool.map(lambda f: f.digest or cache.sha256(f.path), found)
        facts = [
            {"path": file.name, "bytes": file.size, "sha256": digest}
            for file, digest in zip(found, digests, strict=True)
        ]
    cache.save()
    return facts


def known(data: DataConfig) -> bool:
    """Returns whether `resolve` and `contents` have been called, by any task."""
    cache = Fingerprints(data.dir)
    if any("://" in url and url not in cache.entries for url in data.sources):
        return False
    return all(file.digest or cache.knows(file.path) for file in resolve(data))


def _find(source: str, split: str, cache: Fingerprints) -> Sequence[File]:
    if source.startswith("tfds:"):
        return tfds.find(source.removeprefix("tfds:"), split)
    if "://" in source:
        found = [
            File(path=PurePosixPath(url.partition("?")[0]), url=url, size=n, digest=d)
            for url, n, d in remote.find(source, cache.entries)
        ]
    else:
        found = [File(path=path, size=path.stat().st_size) for path in _local(source)]
    for file in found:
        kind = readers.file_format(file.path)
        packed = file.path.suffix != kind
        if kind not in readers.FORMATS or (packed and kind == ".parquet"):
            raise UserError(
                f"config.data.sources: {file.name} is none of "
                f"{', '.join(readers.FORMATS)} (plain or "
                f"{', '.join(readers.COMPRESSIONS)}; .parquet plain); convert or "
                "rename it"
            )
    return found


def _local(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if source.startswith("embedded:"):
        if source not in EMBEDDED:
            raise UserError(
                f"config.data.sources: {source!r} is not one of {list(EMBEDDED)}"
            )
        matches = [str(resources.files("cramjax") / EMBEDDED[source])]
    elif path.is_file():  # though it may look like a pattern
        matches = [str(path)]
    else:
        matches = sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))
    if not matches:
        in_folder = f" (here {str(path / '*.txt')!r})" if path.is_dir() else ""
        raise UserError(
            f"config.data.sources: {source!r} matches no file; pass files, globs"
            f"{in_folder}, URLs or tfds:NAME"
        )
    # Not resolved: the suffix of a link says what is in the file, its target's may not.
    return [Path(os.path.abspath(m)) for m in matches]


def _weights(groups: Sequence[Sequence[File]], shares: Sequence[float]) -> list[float]:
    """Returns the expected fraction of the text of every file; they sum to 1."""
    sizes = [[file.size for file in group] for group in groups]
    sizes = [group if any(group) else [1] * len(group) for group in sizes]
    of_source = shares or [sum(group) / sum(map(sum, sizes)) for group in sizes]
    return [
        share / sum(of_source) * size / sum(group)
        for share, group in zip(of_source, sizes, strict=True)
        for size in group
    ]


def spread(
    total: int, weights: Sequence[float], grain: int = MIN_CHARS
) -> list[int | None]:
    """Divides `total` over files by their weights; all are None if it is 0.

    The results sum to about `total`. Where they would be below `grain` (a file gives
    whole documents only), some files get a grain or more and others nothing.
    """
    if not total:
        return [None] * len(weights)
    if not grain <= total < len(weights) * grain:
        grain = 1
    ends = np.cumsum(weights) / np.sum(weights) * total / grain
    steps = np.diff(np.round(ends, 6).round(), prepend=0)
    return [int(step) * grain for step in steps]


def grouped(found: Sequence[File]) -> list[list[File]]:
    """Returns the files in order, small ones of a source together.

    One worker turns a group into shards.
    """
    groups: list[list[File]] = []
    room = 0
    for file in found:
        if not groups or room < file.size or groups[-1][0].source != file.source:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(file)
        room -= file.size
    return groups

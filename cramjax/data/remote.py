"""Files at URLs, through fsspec: found once, read in pieces, never cut short."""

import hashlib
import io
import json
import re
import time
from typing import Any, BinaryIO

import fsspec

from cramjax.errors import SourceLost, UserError, one_line

CACHE = "fingerprints.json"  # in data.dir
RETRY_AFTER_S = (1.0, 4.0, 16.0)
# Bytes requested at once: few at the beginning, of which a sample may be enough.
FIRST_BYTES, MOST_BYTES = 1 << 18, 1 << 24
# How file systems name a file's version.
VERSION = (
    *("blob_id", "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "Last-Modified"),
    *("LastModified", "mtime", "created"),
)


def open_url(url: str, size: int) -> BinaryIO:
    """Opens a file of a known size; what is not read is not downloaded.

    Reading raises `SourceLost` if the server cannot be reached for a while, and nothing
    else, so that what a decompressor raises is the file's own damage.
    """
    return io.BufferedReader(_Raw(url, size), 1 << 16)


def probe(url: str) -> None:
    """Reads the first byte of a file; raises a `UserError` if that is not possible."""
    try:
        with _open(url) as file:
            file.read(1)
    except Exception as error:  # of many kinds: HTTP, names, rights
        raise _unreachable(url, error) from error


class _Raw(io.RawIOBase):
    """Reads a file anew from where it stopped when the connection is lost."""

    def __init__(self, url: str, size: int):
        self._url, self._size, self._at = url, size, 0
        self._file: Any = None
        self._ahead = memoryview(b"")
        self._next_bytes = FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = (0, self._at, self._size)[whence] + offset
        if at != self._at:
            self._at, self._ahead = at, memoryview(b"")
            self._next_bytes = FIRST_BYTES
        return at

    def readinto(self, into: memoryview) -> int:
        left = self._size - self._at
        if not self._ahead and left > 0:
            size = min(max(self._next_bytes, len(into)), left)
            self._ahead = memoryview(self._fetch(size))
            self._next_bytes = min(2 * self._next_bytes, MOST_BYTES)
        count = min(len(into), len(self._ahead))
        into[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        self._at += count
        return count

    def _fetch(self, size: int) -> bytes:
        """Returns some of the next bytes, at least one."""
        for wait_s in (*RETRY_AFTER_S, None):
            try:
                self._file = self._file or _open(self._url)
                if self._file.size != self._size:
                    break
                self._file.seek(self._at)
                if data := self._file.read(size):
                    return data
                raise EOFError(f"nothing after {self._at:,} of {self._size:,} bytes")
            except Exception as error:  # of many kinds, few of them OSErrors
                self._file = None
                if wait_s is None:
                    raise SourceLost(
                        f"config.data.sources: {self._url}: reading stopped "
                        f"({_reason(error)}); the same command continues with what is "
                        "finished"
                    ) from error
                time.sleep(wait_s)
        raise UserError(
            f"config.data.sources: {self._url} had {self._size:,} bytes when it was "
            f"found and has {self._file.size:,} now: delete {CACHE} in config.data.dir "
            "to take it as it is"
        )


def _open(url: str) -> Any:
    """Opens a file that fetches the bytes it is asked for and no others."""
    system, path = fsspec.core.url_to_fs(url)
    return system.open(path, "rb", cache_type="none")


def find(source: str, known: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Returns the URL, bytes and digest of the files that a URL names, by name.

    Args:
      source: a URL whose path may have "*" and "[...]". On the hub it means the newest
        commit, or the revision that the URL names.
      known: remembers the files for good, and with them the commit.

    Raises:
      UserError: no file matches, or the server cannot be reached.
    """
    if source not in known:
        try:
            known[source] = _ask(source)
        except Exception as error:  # of many kinds: HTTP, names, rights, packages
            raise _unreachable(source, error) from error
    return known[source]


def _ask(source: str) -> list[tuple[str, int, str]]:
    """Returns what `find` returns. A digest is a SHA-256, or the hash of a version."""
    system, path = fsspec.core.url_to_fs(source)
    if source.startswith("hf://datasets/"):
        path = _pinned(system, path)
    if re.search(r"[*[]", path):  # a "?" may begin a query
        infos = system.glob(path, detail=True)
    else:
        infos = {path: system.info(path)}
    files = [(n, info) for n, info in sorted(infos.items()) if info["type"] == "file"]
    if not files:
        raise FileNotFoundError("no such file")
    if unknown := [name for name, info in files if info["size"] is None]:
        raise ValueError(f"the size of {unknown[0]} is not known: download it")
    urls = {system.unstrip_protocol(name): info for name, info in files}
    return [(url, info["size"], _digest(url, info)) for url, info in urls.items()]


def _pinned(hub: Any, path: str) -> str:
    """Returns a path of a data set on the hub with the commit for the revision."""
    import huggingface_hub

    place = hub.resolve_path(path.replace("@~parquet/", "@refs/convert/parquet/", 1))
    info = huggingface_hub.HfApi(endpoint=hub.endpoint, token=hub.token).dataset_info(
        place.repo_id, revision=place.revision, timeout=10
    )
    return f"datasets/{place.repo_id}@{info.sha}/{place.path_in_repo}"


def _digest(url: str, info: dict[str, Any]) -> str:
    if info.get("lfs"):
        return info["lfs"].sha256
    version = {key: str(info[key]) for key in VERSION if info.get(key)}
    place = "" if "blob_id" in version else url  # that is a hash of the content
    facts = json.dumps([place, info["size"], version])
    return hashlib.sha256(facts.encode()).hexdigest()


def _unreachable(source: str, error: Exception) -> UserError:
    return UserError(
        f"config.data.sources: {source} cannot be read ({_reason(error)}); check the "
        "name and the connection, or pass local files, e.g. "
        "--config.data.sources=\"('texts/*.txt.gz',)\""
    )


def _reason(error: Exception) -> str:
    return one_line(error) or type(error).__name__

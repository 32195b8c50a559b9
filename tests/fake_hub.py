"""A Hugging Face hub on the loopback interface that serves folders as data sets.

    with FakeHub(folder) as hub:  # folder/OWNER/NAME/... is the branch main of a set
        hub.use(monkeypatch)      # in this process and those that it starts
        subprocess.run(command, env=os.environ | hub.env)  # or in another one alone

A folder OWNER/NAME@~parquet beside it is the set's Parquet branch.
"""

import contextlib
import functools
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PARQUET = ("~parquet", "refs/convert/parquet")
LFS_BYTES = 100  # larger files are kept in LFS, with a SHA-256


class FakeHub:
    """Answers what huggingface_hub's file system asks.

    Attributes:
      url: where it listens.
      env: environment variables for a process that shall use it.
      requests: (method, path, Range header) of every request, in order.
      sent: {file name: bytes sent of it}.
      cut: {file name: offset}: answers with this byte of the file break off there.
      cut_status: if not 0, sent instead of an answer that would break off.
      status: {part of a path: HTTP status that is sent instead}.
      connections: all that were opened.
    """

    def __init__(self, root: Path):
        """Begins to listen."""
        self.root = root
        self.requests: list[tuple[str, str, str | None]] = []
        self.sent: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.cut_status = 0
        self.status: dict[str, int] = {}
        self.connections: list[socket.socket] = []
        handler = functools.partial(_Handler, self)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.env = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0"}
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def __enter__(self) -> "FakeHub":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the port: from now on connections are refused."""
        self.close()

    def close(self) -> None:
        """Closes the port: from now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:  # those kept alive, too
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def use(self, monkeypatch) -> None:
        """Makes this process, and those that it starts, ask this hub."""
        import huggingface_hub
        from huggingface_hub import constants

        for name, value in self.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        self.forget()
        assert huggingface_hub.HfFileSystem().endpoint == self.url

    @staticmethod
    def forget() -> None:
        """Drops what huggingface_hub remembers in this process, as a new one would."""
        import huggingface_hub

        huggingface_hub.HfFileSystem.clear_instance_cache()

    def folder(self, repo: str, revision: str) -> Path | None:
        """Returns what a data set has in a revision, a branch or a commit."""
        main, parquet = self.root / repo, self.root / f"{repo}@~parquet"
        if revision in ("main", _commit(main)):
            return main
        if revision in (*PARQUET, _commit(parquet)) and parquet.is_dir():
            return parquet
        return None


def _commit(folder: Path) -> str:
    """Returns a hash of the names and contents of all files."""
    digest = hashlib.sha1(folder.name.encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _facts(path: Path, folder: Path) -> dict:
    """Returns what the hub's tree says of a file or folder."""
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        oid = hashlib.sha1(name.encode()).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": name}
    data = path.read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    facts = {"type": "file", "oid": oid, "size": len(data), "path": name}
    if len(data) > LFS_BYTES:
        sha256 = hashlib.sha256(data).hexdigest()
        facts["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return facts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, *args):
        self.hub = hub
        hub.connections.append(args[0])
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers["Range"]))
        for part, status in self.hub.status.items():
            if part in unquote(path):
                self._send(status, b"", {"X-Error-Message": f"status {status}"})
                return
        words = path.strip("/").split("/")
        if words[:2] == ["api", "datasets"]:
            self._api("/".join(words[2:4]), [unquote(word) for word in words[4:]])
        elif words[0] == "datasets" and words[3:4] == ["resolve"]:
            name = unquote("/".join(words[5:]))
            self._file("/".join(words[1:3]), unquote(words[4]), name)
        else:
            self._missing("EntryNotFound")

    def _api(self, repo: str, words: list[str]) -> None:
        if not (self.hub.root / repo).is_dir():
            self._missing("RepoNotFound")
            return
        kind, revision = words[0] if words else "revision", (*words, "", "main")[1]
        folder = self.hub.folder(repo, revision or "main")
        if folder is None:
            self._missing("RevisionNotFound")
        elif kind == "revision":
            self._json({"id": repo, "sha": _commit(folder), "siblings": [], "tags": []})
        elif kind == "tree":
            place = folder / "/".join(words[2:])
            if not place.is_dir():
                self._missing("EntryNotFound")
                return
            deep = "recursive=true" in self.path.lower()
            paths = sorted(place.rglob("*") if deep else place.iterdir())
            self._json([_facts(path, folder) for path in paths])
        else:
            self._missing("EntryNotFound")

    def _file(self, repo: str, revision: str, name: str) -> None:
        folder = self.hub.folder(repo, revision)
        path = folder and folder / name
        if path is None or not path.is_file():
            self._missing("EntryNotFound" if folder else "RevisionNotFound")
            return
        data = path.read_bytes()
        start, end, status = 0, len(data), 200
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if asked := self.headers["Range"]:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)) + 1, len(data))
            status = 206 if start < len(data) else 416
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        cut = self.hub.cut.get(path.name, end)
        cut = cut if start <= cut else end
        if cut < end and self.hub.cut_status:
            self._send(self.hub.cut_status, b"", {"X-Error-Message": "cut"})
            return
        self._send(status, data[start:end], headers, cut - start)
        sent = max(min(end, cut) - start, 0)
        self.hub.sent[path.name] = self.hub.sent.get(path.name, 0) + sent

    def _json(self, content: object) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(200, json.dumps(content).encode(), kind)

    def _missing(self, what: str) -> None:
        self._send(404, b"", {"X-Error-Code": what, "X-Error-Message": what})

    def _send(
        self, status: int, body: bytes, headers: dict, limit: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:limit])
        if limit is not None and limit < len(body):
            self.close_connection = True

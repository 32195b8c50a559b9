"""Text behind URLs: from a hub on the loopback interface, and from memory."""

import bz2
import gzip
import importlib.util
import json
import re
import time

import fsspec
import numpy as np
import pyarrow
import pytest
from conftest import tiny_config
from fake_hub import FakeHub
from pyarrow import parquet

from cramjax import rehearsal
from cramjax.data import encode, prepare, remote, sources
from cramjax.data.readers import ReadContext
from cramjax.errors import SourceLost, UserError

NUMBERS = np.random.default_rng(0).integers(0, 10**6, (1500, 100)).astype(str)
TEXTS = [f"the cat counts {' '.join(row)}" for row in NUMBERS]
COMMON = (
    *("model.vocab_size=80", "data.max_tokens_per_char=0.0"),
    *("data.held_out_share=0.2", "data.tokenizer_chars=2000"),
)
BOOKS = "hf://datasets/me/books/train/*"
DATA = tiny_config("unused").data
NAMES = ("00.jsonl.zst", "01.json.gz", "02.parquet")


def write(folder):
    """Writes three files of records; returns the folder."""
    folder.mkdir(parents=True)
    records = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(record) + "\n" for record in records[:1000])
    half = len(lines) // 2
    half += lines[half:].index("\n") + 1
    packed = pyarrow.compress(lines[:half].encode(), "zstd", asbytes=True)
    (folder / NAMES[0]).write_bytes(packed)
    (folder / NAMES[1]).write_bytes(gzip.compress(lines[half:].encode(), mtime=0))
    table = pyarrow.Table.from_pylist(records[1000:])
    parquet.write_table(table, folder / NAMES[2], row_group_size=100)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    write(tmp_path / "hub/me/books/train")
    monkeypatch.setattr(remote, "FIRST_BYTES", 10_000)
    monkeypatch.setattr(remote, "MOST_BYTES", 20_000)
    with FakeHub(tmp_path / "hub") as hub:
        hub.use(monkeypatch)
        yield hub
    hub.forget()


@pytest.fixture
def impatient(monkeypatch):
    """Retries do not wait, neither here nor in huggingface_hub."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def build(folder, source, *overrides):
    config = tiny_config(folder, f"data.sources=({source!r},)", *COMMON, *overrides)
    return prepare.prepare(config)


def only(folder, source):
    """Returns the file of a source that is one."""
    (file,) = sources.resolve(tiny_config(folder, f"data.sources=({source!r},)").data)
    return file


def blocks(corpus):
    """Returns the contents of all files with blocks, and of the tokenizer."""
    paths = [*corpus.path.glob("*.bin"), *corpus.path.glob("*.json")]
    manifest = corpus.path / "manifest.json"
    return {path.name: path.read_bytes() for path in {*paths} - {manifest}}


def test_the_hub_gives_the_corpus_that_its_files_give(hub, tmp_path, monkeypatch, said):
    """Workers read them without asking the server again what there is."""
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)
    there = build(tmp_path / "a", BOOKS)
    assert re.match(r"corpus: downloads about [\d.e-]+ GB from 3 files, and", said[0])
    here = build(tmp_path / "b", str(tmp_path / "hub/me/books/train/*"))
    assert sum(there.manifest["documents"].values()) == len(TEXTS)
    assert there.manifest["problems"] == {}
    assert len(blocks(there)) > 2 and blocks(there) == blocks(here)
    digests = [corpus.path.name.rpartition("-")[2] for corpus in (there, here)]
    assert digests[0] == digests[1]
    assert there.path.name.startswith("hf-datasets-me-books-train-")
    for facts in there.manifest["sources"]:
        assert re.match(r"hf://datasets/me/books@[0-9a-f]{40}/train/", facts["path"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [0, 403])
def test_a_lost_connection_is_no_damage(
    hub, impatient, tmp_path, monkeypatch, name, status
):
    """What is finished stays; the same call makes the corpus that it would have been.

    huggingface_hub's error with a status is an OSError without a number, like that of
    a decompressor, and its error of a connection is none.
    """
    monkeypatch.setattr(prepare, "CHECK_CHARS", 2000)
    monkeypatch.setattr(encode, "CHUNK_CHARS", 10_000)
    monkeypatch.setattr(prepare, "SHARD_CHARS", 20_000)
    # From Python 3.12 on it is larger than the file.
    monkeypatch.setattr(gzip, "READ_BUFFER_SIZE", 8192, raising=False)
    source = f"hf://datasets/me/books/train/{name}"
    whole = build(tmp_path / "a", source)
    size = (tmp_path / "hub/me/books/train" / name).stat().st_size
    hub.cut, hub.cut_status = {name: size * 3 // 5}, status
    with pytest.raises(
        SourceLost, match=f"{name}: reading stopped .* continues"
    ) as lost:
        build(tmp_path / "b", source)
    assert "\n" not in str(lost.value)
    (building,) = (tmp_path / "b").glob("*.partial")
    finished = {p.name: p.stat().st_mtime_ns for p in building.glob("blocks-*.bin")}
    assert len(finished) > 2
    hub.cut = {}
    corpus = build(tmp_path / "b", source)
    for path, when in finished.items():
        assert (corpus.path / path).stat().st_mtime_ns == when
    assert blocks(corpus) == blocks(whole)
    assert corpus.manifest["problems"] == {}


def test_a_connection_that_comes_back(hub, tmp_path, monkeypatch):
    """Reading goes on from where it was; nobody is told."""
    monkeypatch.setattr(time, "sleep", lambda seconds: hub.cut.clear())
    source = f"hf://datasets/me/books/train/{NAMES[0]}"
    file = only(tmp_path, source)
    with file.open() as stream:
        begin = stream.read(20_000)
        hub.cut[NAMES[0]] = 30_000
        rest = stream.read()
    path = tmp_path / "hub/me/books/train" / NAMES[0]
    assert begin + rest == path.read_bytes()


def test_damage_is_still_damage(hub, tmp_path):
    path = tmp_path / "hub/me/books/train" / NAMES[1]
    path.write_bytes(path.read_bytes()[:-100_000])
    file = only(tmp_path, f"hf://datasets/me/books/train/{NAMES[1]}")
    context = ReadContext(DATA)
    found = list(file.raw_documents(context))
    assert 10 < len(found) < 500
    assert any(what.startswith("01.json.gz is damaged") for what in context.problems)


def test_what_is_over_the_limit_is_not_downloaded(hub, tmp_path):
    corpus = build(tmp_path / "a", BOOKS, "data.max_documents=300")
    assert sum(corpus.manifest["documents"].values()) == 300
    name = NAMES[0]
    size = (tmp_path / "hub/me/books/train" / name).stat().st_size
    # A tenth of it is read five times: by what counts, checks, trains and encodes.
    assert hub.sent[name] < 5 * (0.1 * size + (1 << 16) + 20_000)


def test_a_corpus_that_is_there_needs_no_server(hub, tmp_path, said):
    """Its commit is kept, so that all processes and later runs read the same."""
    corpus = build(tmp_path / "a", BOOKS)
    hub.requests.clear()
    assert build(tmp_path / "a", BOOKS).path == corpus.path
    assert hub.requests == []
    (tmp_path / "hub/me/books/train/03.txt").write_text("a newer commit")
    config = tiny_config(tmp_path / "a", f"data.sources={BOOKS}", *COMMON)
    hub.close()
    hub.forget()
    assert prepare.prepare(config).path == corpus.path
    assert said[-1] == f"corpus: {corpus.path} (found)"
    prepare.check(config)


def test_without_a_network_one_line_says_so_at_once(hub, tmp_path):
    config = tiny_config(tmp_path / "a", f"data.sources={BOOKS}", *COMMON)
    prepare.check(config)  # what it has found is kept
    hub.close()
    hub.forget()
    start = time.monotonic()
    other = tiny_config(tmp_path / "b", f"data.sources={BOOKS}", *COMMON)
    for ask, of in (
        (prepare.check, config),
        (prepare.check, other),
        (prepare.prepare, other),
        (rehearsal._sample, other),
    ):
        with pytest.raises(
            UserError, match="refused.*the connection, or pass loc"
        ) as no:
            ask(of)
        assert "\n" not in str(no.value)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://datasets/me/nothing/*.txt", "repository not found"),
        ("hf://datasets/me/books@dev/*.txt", "revision not found"),
        ("hf://datasets/me/books/none/*.txt", "no such file"),
        ("hf://datasets/me/books/train/00.jsonl.zst", "403 Forbidden"),
        ("hf://datasets/me/books/train/02.*", r"02\.bin is none of \.txt, \.jsonl"),
        ("nix://here/a.txt", "Protocol not known"),
        ("s3://bucket/a.txt", "cannot be read .*s3fs"),
        ("https://example.org/a.txt", "cannot be read .*aiohttp"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_read(
    hub, tmp_path, source, message
):
    package = {"s3:": "s3fs", "https:": "aiohttp"}.get(source.partition("//")[0])
    if package and importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    hub.status["resolve"] = 403
    (tmp_path / "hub/me/books/train/02.bin").touch()
    config = tiny_config(tmp_path / "a", f"data.sources={source}", *COMMON)
    with pytest.raises(UserError, match=f"config.data.sources: .*{message}") as no:
        prepare.check(config)
    assert "\n" not in str(no.value)


def test_a_file_that_has_changed(hub, tmp_path):
    with fsspec.open("memory://changed/a.txt", "w") as file:
        file.write("one\n\ntwo")
    file = only(tmp_path, "memory://changed/a.txt")
    assert list(file.raw_documents(ReadContext(DATA)))[0].strip() == "one"
    fsspec.filesystem("memory").pipe("/changed/a.txt", b"new\n\ntwo")  # a new version
    assert only(tmp_path / "other", "memory://changed/a.txt").digest != file.digest
    fsspec.filesystem("memory").pipe("/changed/a.txt", b"longer than before")
    with pytest.raises(UserError, match="had 8 bytes .* 18 now: delete fingerprints"):
        list(file.raw_documents(ReadContext(DATA)))


def test_bytes_at_any_place(monkeypatch):
    """After a jump, few are requested at first, and never more than the most."""
    data = np.random.default_rng(0).bytes(1 << 21)
    fsspec.filesystem("memory").pipe("/places/a.bin", data)
    monkeypatch.setattr(remote, "FIRST_BYTES", 1 << 17)
    monkeypatch.setattr(remote, "MOST_BYTES", 1 << 18)
    sizes, fetch = [], remote._Raw._fetch
    monkeypatch.setattr(
        remote._Raw, "_fetch", lambda self, n: sizes.append(n) or fetch(self, n)
    )
    with remote.open_url("memory://places/a.bin", len(data)) as file:
        for at in (0, 1 << 20, 100):
            file.seek(at)
            assert file.read(1000) == data[at : at + 1000]
        assert file.read() == data[1100:]
    assert sizes[:4] == [1 << 17] * 3 + [1 << 18] and max(sizes) == 1 << 18


def test_text_in_memory(tmp_path):
    store = fsspec.filesystem("memory")
    half = len(TEXTS) // 2
    store.pipe("/words/a.txt", "\n\n".join(TEXTS[:half]).encode())
    store.pipe("/words/b.txt.bz2", bz2.compress("\n\n".join(TEXTS[half:]).encode()))
    corpus = build(tmp_path, "memory://words/*")
    assert sum(corpus.manifest["documents"].values()) == len(TEXTS)

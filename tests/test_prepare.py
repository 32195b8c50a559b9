"""Building a corpus: in shards, by several processes, stopped and started again."""

import errno
import json
import logging
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, tiny_config
from tokenizers import Tokenizer, models

from cramjax import files
from cramjax.data import encode, prepare, sources, stages, tokenizer
from cramjax.data.corpus import Corpus
from cramjax.errors import SourceLost, UserError
from cramjax.tokens import SEP

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "hat", ".", ",", "it")


def write_texts(folder, files=3, documents=60, seed=0):
    """Writes files of random documents; returns their glob."""
    generator = random.Random(seed)
    folder.mkdir(exist_ok=True)
    for number in range(files):
        texts = (
            " ".join(generator.choices(WORDS, k=generator.randint(5, 80)))
            for _ in range(documents)
        )
        (folder / f"{number}.txt").write_text("\n\n".join(texts))
    return f"{folder}/*.txt"


@pytest.fixture
def small_shards(monkeypatch):
    """Every file is a group of several shards."""
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)
    monkeypatch.setattr(prepare, "SHARD_CHARS", 3000)


def config_of(tmp_path, name="d"):
    texts = write_texts(tmp_path / "texts")
    return tiny_config(
        tmp_path / name,
        f"data.sources={texts}",
        "model.vocab_size=42",
        "data.held_out_share=0.2",
    )


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cores(monkeypatch, count):
    monkeypatch.setattr(stages, "cores", lambda: count)


def test_shards_hold_the_tokens_of_their_documents(tmp_path, small_shards, said):
    config = config_of(tmp_path)
    corpus = prepare.prepare(config)
    assert len(corpus.manifest["shards"]["blocks"]) > 6
    expected = {False: [], True: []}
    for path in [file.path for file in sources.resolve(config.data)]:
        documents = path.read_text().split("\n\n")
        while documents:  # a shard is full with the document that reaches its size
            ids, size = {False: [], True: []}, 0
            while documents and size < 3000:
                text = documents.pop(0)
                size += len(text)
                tokens = corpus.tokenizer.encode(text, add_special_tokens=False).ids
                held_out = encode.is_held_out(text, 0.2)
                ids[held_out] += [*tokens, SEP]
            for held_out, tokens in ids.items():
                expected[held_out] += tokens[: len(tokens) // 32 * 32]
    for blocks, held_out in ((corpus.train, False), (corpus.held_out, True)):
        tokens_NxL = blocks.take(np.arange(len(blocks)))
        np.testing.assert_array_equal(
            tokens_NxL, np.reshape(expected[held_out], (-1, 32))
        )
    documents = corpus.manifest["documents"]
    assert documents["train"] + documents["held_out"] == 180
    names = {path.name.split("-")[0] for path in corpus.path.iterdir()}
    assert names == {
        *("blocks", "held_out", "manifest.json", "tokenizer.json"),
        *("report.md", "lengths.png"),
    }
    report = (corpus.path / "report.md").read_text()
    assert "| documents read | 180 |" in report
    # The same numbers as on the console.
    train, held_out = (len(part) for part in (corpus.train, corpus.held_out))
    counts = f"{documents['train']} documents in {train} blocks of 32 tokens, "
    counts += f"{documents['held_out']} held out in {held_out}, 0 dropped"
    assert any(line.startswith(f"corpus: {counts}") for line in said)
    rows = f"| to train on | {documents['train']} in {train} blocks of 32 tokens |\n"
    share = f"{documents['held_out'] / 180:.2%}"
    rows += f"| held out | {documents['held_out']} ({share}) in {held_out} blocks |\n"
    assert rows + "| dropped | 0 (0.00%) |\n" in report
    assert (
        "`<sep>` " in report
        and report.split("chosen at random")[1].count("\n    ") == 5
    )


def test_two_processes_write_what_one_does(tmp_path, small_shards, monkeypatch):
    stores = []
    for count in (1, 2):
        cores(monkeypatch, count)
        corpus = prepare.prepare(config_of(tmp_path, f"d{count}"))
        stores.append(content(corpus.path))
    assert stores[0] == stores[1]


def test_who_waits_for_a_corpus_gets_it(tmp_path, small_shards, monkeypatch):
    cores(monkeypatch, 1)
    config = config_of(tmp_path)
    encode_shard, waiting = encode._encode_shard, threading.Event()
    found, lines = [], []

    class Heard(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
            if "another process" in lines[-1]:
                waiting.set()

    handler = Heard()
    logging.getLogger("cramjax").addHandler(handler)
    # A thread is another owner to the lock, as a process is.
    other = threading.Thread(target=lambda: found.append(prepare.prepare(config).path))

    def encode_when_waited_for(*args):
        if not waiting.is_set():
            other.start()
            assert waiting.wait(30)
        return encode_shard(*args)

    monkeypatch.setattr(encode, "_encode_shard", encode_when_waited_for)
    corpus = prepare.prepare(config)
    other.join()
    logging.getLogger("cramjax").removeHandler(handler)
    assert found == [corpus.path]
    assert "(found)" in lines[-1]
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert names == {corpus.path.name, "fingerprints.json"}


def test_text_that_changes_meanwhile_is_refused(tmp_path, small_shards, monkeypatch):
    cores(monkeypatch, 1)
    config = config_of(tmp_path)
    path = sources.resolve(config.data)[0].path
    encode_group = encode.encode_group

    def change(*args):
        path.write_text("the cat sat")
        return encode_group(*args)

    monkeypatch.setattr(encode, "encode_group", change)
    with pytest.raises(UserError, match="a file has changed while it was read"):
        prepare.prepare(config)


def test_stopped_and_started_again_it_goes_on(tmp_path, small_shards, monkeypatch):
    cores(monkeypatch, 1)
    whole = prepare.prepare(config_of(tmp_path, "whole"))
    config = config_of(tmp_path)
    encode_shard, calls = encode._encode_shard, []

    def stop_at_5(*args):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(args[-1])
        return encode_shard(*args)

    monkeypatch.setattr(encode, "_encode_shard", stop_at_5)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    (partial,) = (tmp_path / "d").glob("*.partial")
    assert not prepare.corpus_path(config).exists()
    # One finished shard is damaged meanwhile, one has lost its facts.
    (partial / f"blocks-{calls[1]}.bin").write_bytes(b"x")
    (partial / f"facts-{calls[4]}.json").write_text("{")
    again = []
    monkeypatch.setattr(
        encode, "_encode_shard", lambda *a: again.append(a[-1]) or encode_shard(*a)
    )
    corpus = prepare.prepare(config)
    assert content(corpus.path) == content(whole.path)
    shards = [s["file"][7:18] for s in corpus.manifest["shards"]["blocks"]]
    # Of a group, shards after a damaged one are made again: their text is read anyway.
    assert calls == shards[:5] and calls[2][:5] != calls[3][:5]
    assert again == [shard for shard in shards if shard not in (calls[0], calls[3])]


def test_a_full_disk_is_one_line_and_resumable(tmp_path, small_shards, monkeypatch):
    cores(monkeypatch, 1)
    whole = prepare.prepare(config_of(tmp_path, "whole"))
    config = config_of(tmp_path)
    write, left = files.write_bytes, list(range(7))

    def write_until_full(path, data):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", write_until_full)
    with pytest.raises(UserError, match="No space left.*with what is") as error:
        prepare.prepare(config)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(files, "write_bytes", write)
    assert content(prepare.prepare(config).path) == content(whole.path)


def test_a_damaged_shard_is_found_before_training(tmp_path, small_shards):
    config = config_of(tmp_path)
    corpus = prepare.prepare(config)
    path = corpus.path / corpus.manifest["shards"]["held_out"][1]["file"]
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged (its checksum")):
        prepare.prepare(config)
    manifest = json.loads((corpus.path / "manifest.json").read_text())
    del manifest["shards"]["blocks"][0]["crc32"], manifest["dtype"]
    (corpus.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Corpus(corpus.path)


def test_the_tokenizer_sees_a_sample_of_every_file(tmp_path, monkeypatch):
    seen = []

    def note(documents, vocab_size, steps, kind):
        seen.extend(documents())
        return Tokenizer(models.WordPiece())

    monkeypatch.setattr(tokenizer, "train", note)
    texts = write_texts(tmp_path / "texts", files=3, documents=100)
    config = tiny_config(tmp_path, f"data.sources={texts}", "data.tokenizer_chars=9000")
    found = sources.resolve(config.data)
    prepare.train_tokenizer(config, found)
    assert 9000 * 0.9 < sum(map(len, seen)) < 9000 * 1.2
    for file in found:
        documents = file.path.read_text().split("\n\n")
        count = sum(text in set(documents) for text in seen)
        assert 5 < count < 40


@pytest.mark.parametrize("earlier", [False, True])
def test_stopped_before_the_last_step_nothing_is_encoded_again(
    tmp_path, monkeypatch, earlier
):
    texts = write_texts(tmp_path / "texts", files=1, documents=100)
    overrides = (f"data.sources={texts}", "model.vocab_size=42")
    config = tiny_config(tmp_path / "d", *overrides)
    rename = Path.rename

    def stop(self, target):
        if self.name.endswith(".partial") and self.is_dir():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    monkeypatch.setattr(Path, "rename", rename)
    if earlier:  # it did not record the source
        [partial] = Path(config.data.dir).glob("*.partial")
        for path in partial.glob("facts-*.json"):
            facts = files.read_json(path, "")
            del facts["source"]
            files.write_record(path, facts)
        for path in (partial / "manifest.json", *partial.glob("group-*.json")):
            path.unlink()
    monkeypatch.setattr(encode, "_encode_shard", None)  # would not work
    corpus = prepare.prepare(config)
    assert len(corpus.train) and not list(corpus.path.glob("facts-*"))


def test_a_read_error_keeps_what_is_finished(tmp_path, monkeypatch):
    texts = write_texts(tmp_path / "texts", files=1, documents=100)
    overrides = (f"data.sources={texts}", "model.vocab_size=42")
    config = tiny_config(tmp_path / "d", *overrides)
    encode_group = encode.encode_group

    def fails(*args):
        raise SourceLost("the disk is away")

    monkeypatch.setattr(encode, "encode_group", fails)
    with pytest.raises(SourceLost):
        prepare.prepare(config)
    (building,) = (tmp_path / "d").glob("*.partial")
    assert (building / "tokenizer.json").exists()
    monkeypatch.setattr(encode, "encode_group", encode_group)
    prepare.prepare(config)


def test_a_long_line_without_a_space_does_not_stall(tmp_path):
    texts = [f"the cat sat on the mat {i}" for i in range(300)]
    lines = [*texts[:150], "QUJD" * 2_000_000, "-" * 500_000, *texts[150:]]
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    overrides = (f"data.sources={tmp_path}/a.txt", "model.vocab_size=80")
    start = time.monotonic()
    corpus = prepare.prepare(tiny_config(tmp_path / "d", *overrides))
    assert time.monotonic() - start < 30
    assert set(corpus.manifest["problems"]) == {"documents cut for their length"}
    assert "qujd" not in corpus.tokenizer.get_vocab()
    tokens = corpus.train.take(np.arange(len(corpus.train)))
    assert (tokens == corpus.tokenizer.token_to_id("<unk>")).sum() >= 3


PROGRAM = """
import sys
from cramjax.data import prepare, sources
from cramjax.config import load
if __name__ == "__main__":
    sources.GROUP_BYTES, prepare.SHARD_CHARS = 1 << 19, 1 << 18
    prepare.prepare(load("configs/small.py", sys.argv[1:]))
"""


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_started_again_the_store_is_the_same(tmp_path, kills):
    texts = write_texts(tmp_path / "texts", files=6, documents=4000)
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(name):
        command = [sys.executable, str(tmp_path / "program.py"), *TINY]
        overrides = [f"data.sources={texts}", f"data.dir={tmp_path / name}"]
        return subprocess.Popen(
            [*command, *overrides, "model.vocab_size=42"], stdout=subprocess.PIPE
        )

    def folder(name):
        return next(p for p in (tmp_path / name).iterdir() if p.is_dir())

    with start("whole") as process:
        assert process.wait() == 0
    shards = len(Corpus(folder("whole")).manifest["shards"]["blocks"])
    generator = random.Random(kills)
    finished: dict[str, int] = {}
    for goal in np.linspace(0, 0.8 * shards, kills):
        process = start("killed")
        while len(list((tmp_path / "killed").glob("*.partial/facts-*.json"))) < goal:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.3))
        process.kill()
        process.communicate(timeout=20)  # until its workers have closed the pipe, too
        for path in (tmp_path / "killed").glob("*.partial/facts-*.json"):
            made = path.stat().st_mtime_ns
            assert finished.setdefault(path.name, made) == made  # not made again
    assert len(finished) > 0.7 * shards
    with start("killed") as process:
        assert process.wait() == 0
    assert content(folder("killed")) == content(folder("whole"))

import bz2
import collections
import dataclasses
import gzip
import json
import lzma
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from conftest import TINY, run_script, tiny_config
from pyarrow import parquet
from tokenizers import models

from cramjax.data import encoding, ordering, prepare, sources, tokenizer
from cramjax.data.corpus import Blocks, Corpus
from cramjax.data.fingerprints import fingerprints
from cramjax.data.packing import ShardWriter, token_dtype
from cramjax.data.sources import Reading
from cramjax.errors import UserError
from cramjax.schema.data import ORDERS


def write_text(path, documents):
    path.write_text("\n\n".join(documents))
    return path


def read(path, field="text", rule="blank_line"):
    """Returns a file's documents, and its problems."""
    problems = collections.Counter()
    reading = Reading(text_field=field, txt_documents=rule)
    return list(sources.read_documents(path, reading, problems)), dict(problems)


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_readers(tmp_path, suffix):
    def write(name, text):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(PACKERS[suffix](text.encode()))
        return path

    text = write("a.txt", "\n\none\ntwo\r\n\n \n\nthree\rfour\n")
    assert read(text) == (["one\ntwo", "three\nfour"], {})
    assert read(text, rule="line")[0] == ["one", "two", "three", "four"]
    assert read(text, rule="file")[0] == ["one\ntwo\n\n \n\nthree\nfour"]
    lines = '{"text": "one\\n\\ntwo"}\n\n{"text": "  "}\n{"text": "three"}\n'
    assert read(write("b.jsonl", lines)) == (["one\n\ntwo", "three"], {})
    rows = 'id,body\n1,"one, ""two"""\n2,\n3,"three\nfour"\n'
    assert read(write("c.csv", rows), "body")[0] == ['one, "two"', "three\nfour"]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"id": [1, 2, 3], "content": ["one", None, " two "]})
    parquet.write_table(table, path)
    assert read(path, "content") == (["one", "two"], {})
    with pytest.raises(UserError, match=r"field 'text'; it has \['id', 'content'\]"):
        read(path)
    path.write_bytes(path.read_bytes()[:-30])
    documents, problems = read(path)
    assert documents == [] and "a.parquet is damaged" in next(iter(problems))


def test_a_record_without_the_field_names_those_there_are(tmp_path):
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": "one"}\n{"title": "x", "body": "y"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl:2 has no text in.*body.*title"):
        read(lines)
    rows = tmp_path / "c.csv"
    rows.write_text("id,body\n1,one\n")
    with pytest.raises(UserError, match=r"c\.csv has no text in.*'id', 'body'"):
        read(rows)


def test_broken_input_is_survived_and_counted(tmp_path):
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": \n{"text": "a \\ud800 b"}\n[1]]\n')
    assert read(lines) == (["a ? b"], {"lines that are not JSON": 2})
    latin = tmp_path / "d.txt"
    latin.write_bytes(b"caf\xe9\n\nplain")
    assert read(latin) == (
        ["caf\ufffd", "plain"],
        {"documents with bytes that are not UTF-8": 1},
    )
    empty = tmp_path / "e.txt"
    empty.write_text("\n \n")
    assert read(empty) == ([], {"files without text": 1})


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_of_a_cut_file_all_before_the_cut_is_read(tmp_path, suffix, kind):
    words = np.random.default_rng(0).integers(0, 10**9, 200_000).astype(str)
    texts = [" ".join(row) for row in words.reshape(-1, 20)]
    if kind == "txt":
        data = "\n\n".join(texts)
    else:
        data = "\n".join(json.dumps({"text": text}) for text in texts)
    packed = PACKERS[suffix](data.encode())
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    documents, problems = read(path)
    assert len(documents) > 3000  # of 10,000: bzip2 gives whole blocks only
    assert documents[:-1] == texts[: len(documents) - 1]
    (what,) = (name for name in problems if "damaged" in name)
    assert what.startswith(f"{path.name} is damaged: ")


def test_odd_records(tmp_path):
    lines = tmp_path / "a.jsonl"
    deep = "[" * 100_000
    lines.write_text('\ufeff{"text": "one"}\n{"text": ' + "9" * 5000 + "}\n" + deep)
    assert read(lines) == (["one"], {"lines that are not JSON": 2})
    rows = tmp_path / "a.csv"
    rows.write_text("\ufefftext,id\none,1\n\ntwo\n" + '"' + "w " * 200_000 + '",3')
    documents, problems = read(rows)
    assert [len(document) for document in documents] == [3, 3, 399_999]
    assert problems == {}
    columns = tmp_path / "a.parquet"
    values = {"text": [b"caf\xe9", b"plain"], "number": [1, 2]}
    parquet.write_table(pyarrow.table(values), columns)
    assert read(columns)[0] == ["caf\ufffd", "plain"]
    with pytest.raises(UserError, match="no text in the field 'number'"):
        read(columns, "number")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_long_records_are_cut(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "MAX_DOCUMENT_CHARS", 1000)
    path, text = tmp_path / name, "x" * 2500
    if name == "a.parquet":
        parquet.write_table(pyarrow.table({"text": [text]}), path)
    else:
        texts = {"a.csv": f"text\n{text}", "a.jsonl": f'{{"text":"{text}"}}'}
        path.write_text(texts[name])
    documents, problems = read(path)
    assert [len(document) for document in documents] == [1000, 1000, 500]
    assert problems == {"documents cut for their length": 2}


def test_a_file_that_cannot_be_read_is_not_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt cannot be read"):
        read(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"gone\.txt cannot be read"):
        fingerprints([tmp_path / "gone.txt"], tmp_path)


def test_a_file_that_is_one_long_line_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOCUMENT_CHARS", 1000)
    path = tmp_path / "a.txt"
    path.write_text("x" * 2500 + "\nshort\n\nnext")
    documents, problems = read(path)
    assert [len(d) for d in documents] == [1000, 1000, 506, 4]
    assert problems == {"documents cut for their length": 2}


def test_resolve(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl.gz", "d.pdf"):
        (tmp_path / name).touch()
    names = [p.name for p in sources.resolve([f"{tmp_path}/*.txt", f"{tmp_path}/c*"])]
    assert names == ["a.txt", "b.txt", "c.jsonl.gz"]
    for wrong in (f"{tmp_path}/x*.txt", str(tmp_path), "embedded:boks"):
        with pytest.raises(UserError, match="config.data.sources"):
            sources.resolve([wrong])
    with pytest.raises(UserError, match=r"d\.pdf is none of"):
        sources.resolve([f"{tmp_path}/d.pdf"])


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_packing_by_hand(tmp_path, vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype
    documents = ([10, 11, 5], [20, 21, 22, 23, 24, 25, 5], [30, 5], [40, 41, 5])
    shards = []
    for number, some in enumerate((documents[:3], documents[1:2])):
        writer = ShardWriter(4, vocab_size)
        for document in some:
            writer.add(document)
        shards.append(writer.write(tmp_path / f"blocks-{number}.bin"))
        assert writer.token_counts_V[5] == 3 - 3 * number  # of what was written
    assert [shard["blocks"] for shard in shards] == [3, 1]
    blocks = Blocks(tmp_path, shards, 4, dtype)
    expected = [[10, 11, 5, 20], [21, 22, 23, 24], [25, 5, 30, 5], [20, 21, 22, 23]]
    np.testing.assert_array_equal(blocks.take(np.arange(4)), expected)
    np.testing.assert_array_equal(blocks.take(np.array([3, 0])), expected[::-3])
    blocks.verify()
    path = tmp_path / "blocks-1.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"blocks-1\.bin is damaged, its checksum"):
        Blocks(tmp_path, shards, 4, dtype).verify()
    path.write_bytes(b"xx")
    with pytest.raises(UserError, match=r"blocks-1\.bin is not the \d+ bytes"):
        Blocks(tmp_path, shards, 4, dtype)


def test_unigram_entropy():
    assert prepare.unigram_entropy(np.array([0, 4, 4])) == pytest.approx(np.log(2))


def test_blocks_are_the_documents_tokens(corpus, tiny):
    """The store holds exactly what the tokenizer says, in order, <sep> behind each."""
    words = corpus.tokenizer
    for prefix, held_out in ((corpus.train, False), (corpus.held_out, True)):
        ids = []
        for path in sources.resolve(tiny.data.sources):
            for text in read(path)[0]:
                if encoding.is_held_out(text, tiny.data.held_out_share) == held_out:
                    ids += words.encode(text, add_special_tokens=False).ids
                    ids.append(tokenizer.SEP)
        length = tiny.model.max_length
        expected = np.reshape(ids[: len(ids) // length * length], (-1, length))
        np.testing.assert_array_equal(prefix.take(np.arange(len(prefix))), expected)


def test_the_store_is_built_once_and_again_when_a_setting_changes(tiny, corpus):
    lines = []
    assert prepare.prepare(tiny, lines.append).path == corpus.path
    assert lines == [f"corpus: {corpus.path} (found)"]
    for key, value in (("held_out_share", 0.1), ("max_tokens_per_char", 0.5)):
        changed = dataclasses.replace(tiny.data, **{key: value})
        other = prepare.corpus_path(dataclasses.replace(tiny, data=changed))
        assert other != corpus.path
    changed = dataclasses.replace(tiny.data, order="stored")
    assert prepare.corpus_path(dataclasses.replace(tiny, data=changed)) == corpus.path


def test_the_script_prepares_without_training(tmp_path):
    overrides = [f"--config.{o}" for o in (*TINY, f"data.dir={tmp_path}")]
    flags = ["--config=configs/quickstart.py", *overrides]
    done = run_script("prepare_data.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "452 documents" in done.stdout
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[1] == "fingerprints.json"
    assert "(found)" in run_script("prepare_data.py", *flags).stdout


def test_content_decides_not_place_or_time(tmp_path):
    (tmp_path / "a").mkdir()
    one = tmp_path / "a" / "t.txt"
    one.write_text("the same text")
    config = tiny_config(tmp_path / "d", f"data.sources={one}")
    path = prepare.corpus_path(config)
    os.utime(one, (1, 1))
    assert prepare.corpus_path(config) == path
    two = shutil.copy(one, tmp_path / "t.txt")
    moved = tiny_config(tmp_path / "d", f"data.sources={two}")
    assert prepare.corpus_path(moved) == path
    one.write_text("the other text")
    assert prepare.corpus_path(config) != path


def test_filter_drops_what_the_tokenizer_finds_odd(tmp_path):
    plain = [
        f"the cat sat on the mat number {i} and the dog too " * 8 for i in range(60)
    ]
    odd = ["q9x7zz8kk1 " * 20]
    write_text(tmp_path / "a.txt", plain + odd)
    overrides = (f"data.sources={tmp_path}/a.txt", "model.vocab_size=80")
    for limit, dropped in ((0.0, 0), (0.5, 1)):
        config = tiny_config(tmp_path, *overrides, f"data.max_tokens_per_char={limit}")
        manifest = prepare.prepare(config).manifest
        assert manifest["documents"]["filtered"] == dropped


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", (), r"no text in .*\(files without text\)"),
        ("\n \n", (), "no text in"),
        ("a few words only", ("model.vocab_size=1024",), "config.model.vocab_size"),
        ("\u4e2d\u6587 \u4e2d", (), "config.data.normalizer removes"),
        ("a few words only", ("model.vocab_size=16",), "characters alone need"),
        ("of two\n\none document", ("model.vocab_size=38",), "no training block"),
    ],
)
def test_unusable_text(tmp_path, text, overrides, message):
    (tmp_path / "a.txt").write_text(text)
    config = tiny_config(tmp_path / "d", f"data.sources={tmp_path}/a.txt", *overrides)
    with pytest.raises(UserError, match=message):
        prepare.prepare(config)
    names = [path.name for path in (tmp_path / "d").iterdir()]
    assert names == ["fingerprints.json"]  # nothing half-built stays behind


def test_a_damaged_manifest_is_named(tiny, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json cannot be read"):
        Corpus(tmp_path)


def test_a_corpus_without_its_tokenizer_or_manifest_is_named(
    tiny, corpus, tmp_path, monkeypatch
):
    copy = shutil.copytree(corpus.path, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        Corpus(copy)
    (copy / "manifest.json").unlink()
    monkeypatch.setattr(prepare, "corpus_path", lambda _: copy)
    with pytest.raises(UserError, match=r"copy has no manifest\.json: delete it"):
        prepare.prepare(tiny)


def test_sentence_length_order(corpus, tiny):
    period = corpus.tokenizer.token_to_id(".")
    order = ordering.first_pass(corpus, "sentence_length", 0)
    assert sorted(order) == list(range(len(corpus.train)))
    counts = (corpus.train.take(np.asarray(order)) == period).sum(axis=1)
    assert (np.diff(counts) <= 0).all() and counts[0] > counts[-1]
    assert (corpus.path / "order-sentence_length.npy").exists()


def test_orders_by_hand(tmp_path):
    """Tokens 7 "a", 8 "##bc", 9 "def", 10 "."; 5 is <sep>."""
    blocks = [[7, 7, 9, 5], [7, 8, 8, 7], [10, 5, 10, 5], [9, 9, 9, 9], [7, 7, 7, 5]]
    (tmp_path / "b.bin").write_bytes(np.array(blocks, "<u2").tobytes())
    shard = {"file": "b.bin", "blocks": 5, "crc32": 0}
    vocab = [*tokenizer.SPECIAL_TOKENS, "a", "##bc", "def", "."]
    model = models.WordPiece({piece: i for i, piece in enumerate(vocab)})
    corpus = SimpleNamespace(
        path=tmp_path,
        train=Blocks(tmp_path, [shard], 4, "<u2"),
        manifest={"vocab_size": 11},
        tokenizer=tokenizer._assembled("wordpiece", (), model),
    )
    # Counts: 7 seven times, 9 five, 5 four, 8 two, 10 two.
    for order, expected in {
        "stored": [0, 1, 2, 3, 4],
        "sentence_length": [2, 0, 1, 3, 4],
        "fragments": [2, 0, 4, 1, 3],
        "unigram": [4, 0, 3, 1, 2],
        "unigram_reversed": [2, 1, 3, 0, 4],
        "decoded_length": [2, 4, 0, 1, 3],  # 4, 6, 8, 8 and 16 characters
    }.items():
        for _ in range(2):  # computed, then read
            assert list(ordering.first_pass(corpus, order, 0)) == expected, order
    path = tmp_path / "order-unigram.npy"
    path.write_bytes(path.read_bytes()[:-3])  # damaged: made again
    assert list(ordering.first_pass(corpus, "unigram", 0)) == [4, 0, 3, 1, 2]
    assert set(ordering.VALUES) | {"random", "stored"} == set(ORDERS)


def test_batches_depend_on_the_position_alone(corpus):
    total = len(corpus.train)
    stream = ordering.BlockStream(corpus, "stored", seed=3)
    np.testing.assert_array_equal(
        stream.batch(5, 4), corpus.train.take(np.arange(5, 9))
    )
    across = stream.batch(total - 2, 5)
    np.testing.assert_array_equal(across[:2], stream.batch(total - 2, 2))
    np.testing.assert_array_equal(across[2:], stream.batch(total, 3))
    second = ordering.reshuffled(total, 3, 1)
    np.testing.assert_array_equal(across[2:], corpus.train.take(second[:3]))
    assert sorted(second) == list(range(total))
    assert (second != ordering.reshuffled(total, 3, 2)).any()
    assert (second != ordering.reshuffled(total, 4, 1)).any()


def test_manifest(corpus):
    manifest = json.loads((corpus.path / "manifest.json").read_text())
    assert manifest["tokens"]["train"] == len(corpus.train) * corpus.train.length
    assert manifest["documents"]["train"] + manifest["documents"]["held_out"] == 467
    assert 3 < manifest["unigram_entropy"] < np.log(256)

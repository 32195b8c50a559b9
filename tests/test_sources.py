import bz2
import dataclasses
import gzip
import io
import json
import lzma
import os

import numpy as np
import pyarrow
import pytest
from conftest import tiny_config
from pyarrow import parquet

from cramjax.data import prepare, readers, sources
from cramjax.data.readers import File, ReadContext
from cramjax.errors import UserError


def resolve(tmp_path, *overrides):
    """Returns the files of a config."""
    return sources.resolve(tiny_config(tmp_path / "data", *overrides).data)


DATA = tiny_config("unused").data


def read(path, field="text", rule="blank_line", keep=(), join=0, limits=(None, None)):
    """Returns a file's documents, and its problems."""
    changes = {"text_field": field, "txt_documents": rule, "keep": keep}
    records = ReadContext(dataclasses.replace(DATA, **changes, join_chars=join))
    file = File(path=path, max_chars=limits[0], max_documents=limits[1])
    return list(file.documents(records)), dict(records.problems)


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
    found = read(path, "content")
    assert found == (["one", "two"], {"records without text": 1})
    with pytest.raises(UserError, match=r"field 'text'; it has \['content', 'id'\]"):
        read(path)
    path.write_bytes(path.read_bytes()[:-30])
    documents, problems = read(path)
    assert documents == [] and "a.parquet is damaged" in next(iter(problems))


def test_a_record_without_the_field_names_those_there_are(tmp_path):
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": "one"}\n{"title": "x", "body": "y"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl has no text in.*body.*title"):
        read(lines)
    rows = tmp_path / "c.csv"
    rows.write_text("id,body\n1,one\n")
    with pytest.raises(UserError, match=r"c\.csv has no text in.*'body', 'id'"):
        read(rows)


def test_broken_input_is_survived_and_counted(tmp_path):
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": \n{"text": "a \\ud800 b"}\n[1]]\n')
    assert read(lines) == (["a ? b"], {"lines that are not JSON objects": 2})
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


def test_json_with_a_record_a_line(tmp_path):
    """C4's files are called c4-train.00000-of-01024.json.gz."""
    path = tmp_path / "a.00000-of-00002.json.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    (found,) = resolve(tmp_path, f"data.sources={path}")
    assert read(found.path) == (["one", "two"], {})
    plain = tmp_path / "b.json"
    plain.write_text('[\n  {"text": "one"}\n]\n')
    assert read(plain)[0] == ["one"]


def test_names_of_corpora_do_not_change(tmp_path):
    """A run goes on where its corpus has the name it had: these are of version 5."""
    (tmp_path / "a.txt").write_text("".join(f"the cat {i} sat\n\n" for i in range(50)))
    lines = b"".join(b'{"text": "the dog %d lay"}\n' % i for i in range(50))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    both = f"data.sources=('{tmp_path}/[ab].*',)"
    held_out = "data.held_out_share=0.03"  # the quickstart's in version 5
    config = tiny_config(tmp_path / "d", both, held_out)
    assert prepare.corpus_path(config).name == "a-95a2b9e2862c"
    limits = ("data.max_chars=500", "data.max_documents=40")
    two = f"data.sources=('{tmp_path}/b.jsonl.gz','{tmp_path}/a.txt')"
    config = tiny_config(tmp_path / "d", two, *limits, held_out)
    assert prepare.corpus_path(config).name == "b-a0cfc87a6fec"


def test_of_parquet_one_row_group_is_read_at_a_time(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{i} " + "x" * 50 for i in range(20_000)]
    table = pyarrow.table({"text": texts})
    parquet.write_table(table, path, row_group_size=100, compression="none")
    asked = []

    class Counting(io.FileIO):
        def readinto(self, into):
            asked.append(len(into))
            return super().readinto(into)

    class Counted(File):
        def open(self):
            return io.BufferedReader(Counting(path))

    file = Counted(path=path, max_documents=150)
    found = list(file.documents(ReadContext(DATA)))
    assert found == texts[:150]
    assert sum(asked) < path.stat().st_size / 2


def test_odd_records(tmp_path):
    lines = tmp_path / "a.jsonl"
    deep = "[" * 100_000
    lines.write_text('\ufeff{"text": "one"}\n{"text": ' + "9" * 5000 + "}\n" + deep)
    assert read(lines)[0] == ["one"]
    assert read(lines)[1]["lines that are not JSON objects"] == 2
    lines.write_text('{"text": 5}\n"text"\n[1]\n{"text": "two"}\n{"text": null}')
    assert read(lines) == (
        ["two"],
        {
            "records whose text is not a string": 1,
            "lines that are not JSON objects": 2,
            "records without text": 1,
        },
    )
    rows = tmp_path / "a.csv"
    rows.write_text("\ufefftext,id\none,1\n\ntwo\n" + '"' + "w " * 200_000 + '",3')
    documents, problems = read(rows)
    assert [len(document) for document in documents] == [3, 3, 399_999]
    assert problems == {}
    columns = tmp_path / "a.parquet"
    values = {"text": [b"caf\xe9", b"plain"], "number": [1, 2]}
    parquet.write_table(pyarrow.table(values), columns)
    assert read(columns)[0] == ["caf\ufffd", "plain"]
    problems = {"records whose text is not a string": 2, "files without text": 1}
    assert read(columns, "number") == ([], problems)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_long_records_are_cut(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "MAX_DOCUMENT_CHARS", 1000)
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
        sources.Fingerprints(str(tmp_path)).sha256(tmp_path / "gone.txt")


def test_a_file_that_is_one_long_line_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_DOCUMENT_CHARS", 1000)
    path = tmp_path / "a.txt"
    path.write_text("x" * 2500 + "\nshort\n\nnext")
    documents, problems = read(path)
    assert [len(d) for d in documents] == [1000, 1000, 506, 4]
    assert problems == {"documents cut for their length": 2}


def test_resolve(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl.gz", "d.pdf"):
        (tmp_path / name).touch()
    found = resolve(tmp_path, f"data.sources=('{tmp_path}/*.txt','{tmp_path}/c*')")
    assert [p.path.name for p in found] == ["a.txt", "b.txt", "c.jsonl.gz"]
    assert [p.source for p in found] == [0, 0, 1]
    for wrong in (f"{tmp_path}/x*.txt", str(tmp_path), "embedded:boks"):
        with pytest.raises(UserError, match="config.data.sources"):
            resolve(tmp_path, f"data.sources={wrong}")
    with pytest.raises(UserError, match=r"matches no file; .* \(here .*/\*\.txt"):
        resolve(tmp_path, f"data.sources={tmp_path}")
    with pytest.raises(UserError, match=r"d\.pdf is none of"):
        resolve(tmp_path, f"data.sources={tmp_path}/d.pdf")


def test_records_are_kept_by_their_fields(tmp_path):
    records = [
        {"text": "one", "meta": {"set": "books"}, "n": 1},
        {"text": "two", "meta": {"set": "web"}, "n": 2},
        {"text": "three", "meta": {"set": "wiki"}, "n": 1},
        {"text": None, "meta": {"set": "wiki"}, "n": 1},
    ]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, records)))
    columns = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records), columns)
    rows = tmp_path / "a.csv"
    rows.write_text("text,n,set\none,1,books\ntwo,2,web\nthree,1,wiki\n,1,wiki\n")
    left_out = {"records left out by data.keep": 1, "records without text": 1}
    for path, field in ((lines, "meta.set"), (columns, "meta.set"), (rows, "set")):
        sets = (f"{field}=books|wiki",)
        found, problems = read(path, keep=sets)
        # An empty field of .csv is an empty text, and no document either.
        expected = dict(list(left_out.items())[: 1 if path == rows else 2])
        assert (found, problems) == (["one", "three"], expected)
        both = (*sets, "n=2")
        assert read(path, keep=both)[0] == []
        with pytest.raises(
            UserError, match=r"no such field 'meta[.a-z]*'; it has \['.*keep"
        ):
            field = "meta.sett" if path != rows else "meta.set"
            read(path, keep=(f"{field}=x",))
    plain = tmp_path / "a.txt"
    plain.write_text("one")
    with pytest.raises(UserError, match=r"a\.txt has no such field 'n'"):
        read(plain, keep=("n=1",))


def test_keep_as_written_in_a_config(tmp_path):
    rules = '("meta.set=a|b=c","n=1")'
    config = tiny_config(tmp_path, f"data.keep={rules}", "data.join_chars=7")
    keep = {"meta.set": {"a", "b=c"}, "n": {"1"}}
    assert ReadContext(config.data).keep == keep
    assert config.data.join_chars == 7
    with pytest.raises(UserError, match="FIELD=VALUE"):
        tiny_config(tmp_path, "data.keep=('books',)")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            "('lang=xx|yy',)",
            "records left out by data.keep; files without text; "
            "the first record left out has {'lang': 'en'}); see",
        ),
        # Each exists, but never both.
        ("('lang=en','meta.year=1901')", "{'lang': 'en', 'meta.year': 1900}"),
        ("('meta.ok=yes',)", "left out has {'meta.ok': True}"),
    ],
)
@pytest.mark.parametrize("more", ["data.max_chars=0", "data.drop_duplicates=True"])
def test_rules_that_keep_nothing_name_the_values(tmp_path, rules, message, more):
    for name in ("a", "b"):
        records = [
            {
                "text": f"the cat {i}",
                "lang": ["en", "de"][i % 2],
                "meta": {"year": 1900 + i, "ok": i % 2 == 0},
            }
            for i in range(20)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    overrides = (f"data.sources={tmp_path}/*.jsonl", f"data.keep={rules}", more)
    with pytest.raises(UserError) as error:
        prepare.prepare(tiny_config(tmp_path / "d", *overrides))
    assert message in str(error.value) and "data.keep=('" in str(error.value)
    assert not list((tmp_path / "d").glob("*.partial"))


def test_short_documents_are_joined(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(["abc", "de", "f", "ghijkl", "mn"]))
    assert read(path, join=5)[0] == ["abc\nde", "f\nghijkl", "mn"]
    assert read(path, join=1)[0] == ["abc", "de", "f", "ghijkl", "mn"]


def test_limits(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(["abc", "de", "f", "ghijkl", "mn"]))
    assert read(path, limits=(5, None))[0] == ["abc", "de"]
    assert read(path, limits=(6, None))[0] == ["abc", "de", "f"]
    assert read(path, limits=(None, 4))[0] == ["abc", "de", "f", "ghijkl"]
    assert read(path, limits=(1, 4))[0] == ["abc"]


def test_limits_are_spread_over_the_files(tmp_path):
    for name, size in {"a": 100, "b": 300, "c": 400}.items():
        (tmp_path / f"{name}.txt").write_text("x" * size)
    names = f"data.sources=('{tmp_path}/[ab].txt','{tmp_path}/c.txt')"
    found = resolve(tmp_path, names, "data.max_chars=80", "data.max_documents=8")
    assert [p.weight for p in found] == [0.125, 0.375, 0.5]
    assert [(p.max_chars, p.max_documents) for p in found] == [
        (10, 1),
        (30, 3),
        (40, 4),
    ]
    found = resolve(tmp_path, names, "data.max_chars=80", "data.shares=(0.9,0.1)")
    assert [p.max_chars for p in found] == [18, 54, 8]
    assert [p.max_documents for p in found] == [None] * 3
    with pytest.raises(UserError, match="data.max_chars is 0"):
        resolve(tmp_path, names, "data.shares=(0.9,0.1)")
    with pytest.raises(UserError, match="number for each of data.sources"):
        resolve(tmp_path, names, "data.max_chars=80", "data.shares=(1.0,)")


def test_sources_in_proportion(tmp_path, said):
    """A corpus of 3:1, though the files are 1:1; what is missing is said."""
    for name, animal in (("a", "cat"), ("b", "dog")):
        words = [f"the {animal} sat on the mat {i}" for i in range(2000)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(words))
    overrides = (
        f"data.sources=('{tmp_path}/a.txt','{tmp_path}/b.txt')",
        "data.shares=(3.0,1.0)",
        "data.max_tokens_per_char=0.0",
        "model.vocab_size=80",
    )
    config = tiny_config(tmp_path / "data", *overrides, "data.max_chars=20000")
    corpus = prepare.prepare(config)
    shares = [source["share"] for source in corpus.manifest["text"]]
    assert shares == pytest.approx([0.75, 0.25], abs=0.005)
    assert not any("shares" in line for line in said)
    words, length = corpus.tokenizer, corpus.train.length
    text = words.decode(corpus.train.take(np.arange(len(corpus.train))).ravel())
    assert text.count("cat") / text.count("dog") == pytest.approx(3, rel=0.1)
    config = tiny_config(tmp_path / "data", *overrides, "data.max_chars=200000")
    assert prepare.prepare(config).train.length == length
    assert any("a.txt gave 5" in line and "not 75.0%" in line for line in said)


def test_a_build_resolves_its_sources_once(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n\n".join(f"the cat {i}" for i in range(300)))
    overrides = (f"data.sources={tmp_path}/a.txt", "model.vocab_size=40")
    resolve, calls = sources.resolve, []
    monkeypatch.setattr(sources, "resolve", lambda d: calls.append(d) or resolve(d))
    prepare.prepare(tiny_config(tmp_path / "d", *overrides))
    assert len(calls) == 1


def test_spread():
    assert sources.spread(0, [0.5, 0.5]) == [None, None]
    assert sources.spread(10, [0.5, 0.3, 0.2], 1) == [5, 3, 2]
    some = sources.spread(3, [0.1] * 10, 1)
    assert sum(some) == 3 and set(some) == {0, 1} and 1 not in some[-1:]
    few = sources.spread(30_000, [0.02] * 50)
    assert sum(few) == pytest.approx(30_000, abs=8192) and few.count(0) > 40
    assert sum(sources.spread(10**6, [0.02] * 50)) == 10**6


def test_an_empty_file_does_not_change_the_mix(tmp_path):
    for name, size in {"a": 300, "b": 100, "zero": 0}.items():
        (tmp_path / f"{name}.txt").write_text("x" * size)
    names = ",".join(f"'{tmp_path}/{name}.txt'" for name in ("a", "b", "zero"))
    found = resolve(tmp_path, f"data.sources=({names})", "data.max_chars=40")
    assert [p.max_chars for p in found] == [30, 10, 0]


def test_files_given_otherwise_are_another_corpus(tmp_path):
    """Files of two sources are not encoded together: other blocks, another name.

    And so are files that have changed, though their sizes are the same.
    """
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("x")
    two = f"data.sources=('{tmp_path}/a.txt','{tmp_path}/b.txt')"
    glob = f"data.sources={tmp_path}/[ab].txt"
    paths = {
        prepare.corpus_path(tiny_config(tmp_path / "d", sources_of))
        for sources_of in (two, glob)
    }
    assert len(paths) == 2
    (tmp_path / "b.txt").write_text("y")
    os.utime(tmp_path / "b.txt", (1, 1))
    assert prepare.corpus_path(tiny_config(tmp_path / "d", glob)) not in paths


def test_a_link_is_read_by_its_own_name(tmp_path):
    (tmp_path / "blob").write_text("text")
    (tmp_path / "a[1].txt").symlink_to(tmp_path / "blob")
    (found,) = resolve(tmp_path, f"data.sources='{tmp_path}/a[1].txt'")
    assert read(found.path) == (["text"], {})


def test_flat_names_with_dots_and_truth(tmp_path):
    rows = tmp_path / "a.csv"
    rows.write_text("text,meta.set\none,a\ntwo,b\n")
    keep = ("meta.set=a",)
    assert read(rows, keep=keep)[0] == ["one"]
    columns = tmp_path / "a.parquet"
    values = {"text": ["one", "two"], "meta.set": ["a", "b"], "ok": [True, False]}
    parquet.write_table(pyarrow.table(values), columns)
    assert read(columns, keep=keep)[0] == ["one"]
    assert read(columns, keep=("ok=true",))[0] == ["one"]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one", "ok": true}\n{"text": "two", "ok": false}')
    assert read(lines, keep=("ok=false",))[0] == ["two"]


def test_records_that_are_too_long_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_RECORD_CHARS", 100)
    lines = tmp_path / "a.jsonl"
    long = '{"text": "' + "x" * 180 + '"}'  # is read in two parts
    lines.write_text(f'{{"text": "one"}}\n{long}\n{{"text": "two"}}\n{long}')
    assert read(lines) == (["one", "two"], {"lines that are not JSON objects": 4})
    rows = tmp_path / "a.csv"
    rows.write_text('text\none\n"' + "x" * 500)
    assert read(rows) == (["one"], {"rows that are not CSV": 1})
    empty = tmp_path / "b.csv"
    empty.write_text("")
    assert read(empty) == ([], {"files without text": 1})

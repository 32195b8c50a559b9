import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, run_script, tiny_config
from tokenizers import models

from cramjax.config.data import ORDERS
from cramjax.data import encode, order, prepare, sources, tokenizer
from cramjax.data.corpus import Blocks, Corpus, unigram_entropy
from cramjax.data.encode import write_blocks
from cramjax.data.readers import ReadContext
from cramjax.errors import UserError
from cramjax.tokens import CLS, SEP, SPECIAL_TOKENS, token_dtype


def write_text(path, documents):
    path.write_text("\n\n".join(documents))
    return path


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_packing_by_hand(tmp_path, vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype
    documents = ([10, 11, 5], [20, 21, 22, 23, 24, 25, 5], [30, 5], [40, 41, 5])
    shards = []
    for number, some in enumerate((documents[:3], documents[1:2])):
        tokens = array("H" if dtype == "<u2" else "I", itertools.chain(*some))
        shards.append(write_blocks(tokens, 4, tmp_path / f"blocks-{number}.bin"))
    assert [shard["blocks"] for shard in shards] == [3, 1]
    blocks = Blocks(tmp_path, shards, 4, dtype)
    expected = [[10, 11, 5, 20], [21, 22, 23, 24], [25, 5, 30, 5], [20, 21, 22, 23]]
    np.testing.assert_array_equal(blocks.take(np.arange(4)), expected)
    np.testing.assert_array_equal(blocks.take(np.array([3, 0])), expected[::-3])
    assert blocks.token_counts(vocab_size)[[5, 22, 40]].tolist() == [3, 2, 0]
    path = tmp_path / "blocks-1.bin"
    path.write_bytes(b"xx")
    with pytest.raises(UserError, match=r"blocks-1\.bin does not have the \d+ bytes"):
        Blocks(tmp_path, shards, 4, dtype)


@pytest.mark.parametrize(
    ("limits", "text", "tokens", "key"),
    [
        ((0.25, 0, 0), "x" * 8, 2, None),
        ((0.25, 0, 0), "x" * 8, 3, "max_tokens_per_char"),
        ((0.0, 8, 0), "x" * 8, 3, None),
        ((0.0, 9, 0), "x" * 8, 3, "min_document_chars"),
        ((0.0, 0, 8), "x" * 8, 3, None),
        ((0.0, 0, 7), "x" * 8, 3, "max_document_chars"),
    ],
)
def test_filters_by_hand(limits, text, tokens, key):
    names = ("max_tokens_per_char", "min_document_chars", "max_document_chars")
    changes = dict(zip(names, limits, strict=True))
    data = dataclasses.replace(tiny_config("unused").data, **changes)
    assert encode.dropped_by(text, tokens, data) == key


def test_what_is_dropped_is_counted_and_shown(tmp_path):
    kept = [f"the cat sat on the mat {i}" for i in range(300)]
    short, long = ["dog"] * 4, ["the cow jumped over the moon " * 9]
    write_text(tmp_path / "a.txt", [*kept, *short, *long])
    overrides = (
        f"data.sources={tmp_path}/a.txt",
        "data.min_document_chars=4",
        "data.max_document_chars=100",
        "model.vocab_size=80",
    )
    corpus = prepare.prepare(tiny_config(tmp_path / "d", *overrides))
    filtered = {"min_document_chars": 4, "max_document_chars": 1}
    assert corpus.manifest["filtered"] == filtered
    assert corpus.manifest["documents"]["filtered"] == 5
    text = (corpus.path / "report.md").read_text()
    assert "| dropped by data.min_document_chars | 4 (1.31%) |" in text
    assert "    min_document_chars: 4\n" in text
    assert "## Dropped by data.max_document_chars\n\n    the cow jumped" in text


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("sep", [False, True])
def test_what_stands_before_and_after_documents(tmp_path, cls, sep):
    texts = [f"the cat sat on the mat {i}" for i in range(300)]
    write_text(tmp_path / "a.txt", texts)
    overrides = (
        f"data.sources={tmp_path}/a.txt",
        f"data.cls={cls}",
        f"data.sep={sep}",
        "model.vocab_size=80",
    )
    config = tiny_config(tmp_path / "d", *overrides)
    corpus = prepare.prepare(config)
    ids = []
    for text in texts:
        if not encode.is_held_out(text, config.data.held_out_share):
            ids += [CLS] * cls
            ids += corpus.tokenizer.encode(text, add_special_tokens=False).ids
            ids += [SEP] * sep
    blocks = corpus.train.take(np.arange(len(corpus.train)))
    np.testing.assert_array_equal(blocks.ravel(), ids[: blocks.size])
    assert len(ids) - blocks.size < corpus.train.length
    for needs_sep in ("data.order=fragments", "objective.separate_documents=True"):
        if not sep:
            with pytest.raises(UserError, match=r"data\.sep"):
                tiny_config(tmp_path / "d", *overrides, needs_sep)


@pytest.mark.parametrize("own", [True, False])
def test_a_later_file_in_another_script_is_refused_too(tmp_path, corpus, own):
    write_text(tmp_path / "a.txt", ["the cat sat on the mat"] * 50_000)
    write_text(
        tmp_path / "b.txt", ["\u043a\u043e\u0442 \u0438 \u043f\u0451\u0441"] * 50_000
    )
    overrides = [f"data.sources=('{tmp_path}/a.txt','{tmp_path}/b.txt')"]
    if own:
        overrides.append(f"data.tokenizer={corpus.path / 'tokenizer.json'}")
    with pytest.raises(UserError, match="config.data.normalizer removes"):
        prepare.prepare(tiny_config(tmp_path / "d", *overrides))


def test_damage_beside_the_shards_is_named(corpus, tmp_path):
    copy = shutil.copytree(corpus.path, tmp_path / "copy")
    words, facts = copy / "tokenizer.json", copy / "manifest.json"
    text = words.read_text()
    words.write_text(text.replace('"the"', '"teh"'))
    with pytest.raises(UserError, match=r"tokenizer\.json .*its checksum differs"):
        Corpus(copy)
    words.write_text(text)
    Corpus(copy).verify()
    content = json.loads(facts.read_text())
    content["documents"]["train"] += 1
    facts.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*its checksum"):
        Corpus(copy)


@pytest.mark.parametrize("hard", [40, 160])
def test_more_shards_than_files_may_be_open(tmp_path, hard):
    program = f"""
import pathlib, resource
from cramjax.data.corpus import Blocks
resource.setrlimit(resource.RLIMIT_NOFILE, (40, {hard}))
shard = {{"file": "b.bin", "blocks": 1, "crc32": 0}}
blocks = Blocks(pathlib.Path({str(tmp_path)!r}), [shard] * 100, 4, "<u2")
print(len([*blocks.chunks()][0]))
"""
    (tmp_path / "b.bin").write_bytes(b"x" * 8)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.strip() == "100", done.stderr


def test_unigram_entropy_is_of_what_may_be_asked_for():
    counts_V = np.array([0, 0, 0, 0, 5, 9, 0, 4, 4])
    assert [SPECIAL_TOKENS[i] for i in (4, 5)] == ["<cls>", "<sep>"]
    assert unigram_entropy(counts_V) == pytest.approx(np.log(2))


def test_blocks_are_the_documents_tokens(corpus, tiny):
    """The store holds exactly what the tokenizer says, in order, <sep> after each."""
    words = corpus.tokenizer
    for prefix, held_out in ((corpus.train, False), (corpus.held_out, True)):
        ids = []
        for file in sources.resolve(tiny.data):
            for text in file.documents(ReadContext(tiny.data)):
                if encode.is_held_out(text, tiny.data.held_out_share) == held_out:
                    ids += words.encode(text, add_special_tokens=False).ids
                    ids.append(SEP)
        length = tiny.model.max_length
        expected = np.reshape(ids[: len(ids) // length * length], (-1, length))
        np.testing.assert_array_equal(prefix.take(np.arange(len(prefix))), expected)


def test_the_store_is_built_once_and_again_when_a_setting_changes(tiny, corpus, said):
    assert prepare.prepare(tiny).path == corpus.path
    assert said == [f"corpus: {corpus.path} (found)"]
    for key, value in {
        "held_out_share": 0.1,
        "max_tokens_per_char": 0.5,
        "min_document_chars": 2,
        "cls": True,
        "sep": False,
        "keep": ("n=1",),
        "join_chars": 100,
        "max_chars": 10_000,
        "max_documents": 100,
        "split": "dev",
        "text_field": "body",
        "txt_documents": "line",
        "normalizer": ("ascii",),
        "tokenizer_chars": 10_000,
        "drop_duplicates": True,
        "near_duplicates": 0.8,
        "dedup_bytes": 75,
    }.items():
        changed = dataclasses.replace(tiny.data, **{key: value})
        other = prepare.corpus_path(dataclasses.replace(tiny, data=changed))
        assert other != corpus.path
    for key, value in {"order": "stored", "licence": "none"}.items():
        same = dataclasses.replace(tiny.data, **{key: value})
        assert prepare.corpus_path(dataclasses.replace(tiny, data=same)) == corpus.path


def test_the_script_prepares_without_training(tmp_path):
    overrides = [f"--config.{o}" for o in (*TINY, f"data.dir={tmp_path}")]
    flags = ["--config=configs/small.py", *overrides]
    done = run_script("prepare_data.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "434 documents" in done.stdout
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


def test_a_corpus_without_its_tokenizer_or_manifest_is_named(corpus, tmp_path):
    copy = shutil.copytree(corpus.path, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        Corpus(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read.*: delete"):
        Corpus(copy)


def test_sentence_length_order(corpus, tiny):
    period = corpus.tokenizer.token_to_id(".")
    permutation = order.first_epoch(corpus, "sentence_length", 0)
    assert sorted(permutation) == list(range(len(corpus.train)))
    counts = (corpus.train.take(np.asarray(permutation)) == period).sum(axis=1)
    assert (np.diff(counts) <= 0).all() and counts[0] > counts[-1]
    assert (corpus.path / "order-sentence_length.npy").exists()


def test_orders_by_hand(tmp_path):
    """Tokens 7 "a", 8 "##bc", 9 "def", 10 "."; 5 is <sep>."""
    blocks = [[7, 7, 9, 5], [7, 8, 8, 7], [10, 5, 10, 5], [9, 9, 9, 9], [7, 7, 7, 5]]
    (tmp_path / "b.bin").write_bytes(np.array(blocks, "<u2").tobytes())
    shard = {"file": "b.bin", "blocks": 5, "crc32": 0}
    vocab = [*SPECIAL_TOKENS, "a", "##bc", "def", "."]
    model = models.WordPiece({piece: i for i, piece in enumerate(vocab)})
    corpus = SimpleNamespace(
        path=tmp_path,
        train=Blocks(tmp_path, [shard], 4, "<u2"),
        manifest={"vocab_size": 11},
        tokenizer=tokenizer._assembled("wordpiece", (), model),
    )
    # Counts: 7 seven times, 9 five, 5 four, 8 two, 10 two.
    for name, expected in {
        "stored": [0, 1, 2, 3, 4],
        "sentence_length": [2, 0, 1, 3, 4],
        "fragments": [2, 0, 4, 1, 3],
        "unigram": [4, 0, 3, 1, 2],
        "unigram_reversed": [2, 1, 3, 0, 4],
        "decoded_length": [2, 4, 0, 1, 3],  # 4, 6, 8, 8 and 16 characters
    }.items():
        for _ in range(2):  # computed, then read
            assert list(order.first_epoch(corpus, name, 0)) == expected, name
    path = tmp_path / "order-unigram.npy"
    path.write_bytes(path.read_bytes()[:-3])  # damaged: made again
    assert list(order.first_epoch(corpus, "unigram", 0)) == [4, 0, 3, 1, 2]
    assert set(order.TOKEN_SCORES) | {"random", "stored"} == set(ORDERS)


def test_batches_depend_on_the_position_alone(corpus):
    total = len(corpus.train)
    stream = order.BlockStream(corpus, "stored", seed=3)
    np.testing.assert_array_equal(stream.take(5, 4), corpus.train.take(np.arange(5, 9)))
    across = stream.take(total - 2, 5)
    np.testing.assert_array_equal(across[:2], stream.take(total - 2, 2))
    np.testing.assert_array_equal(across[2:], stream.take(total, 3))
    second = order.reshuffled(total, 3, 1)
    np.testing.assert_array_equal(across[2:], corpus.train.take(second[:3]))
    assert sorted(second) == list(range(total))
    assert (second != order.reshuffled(total, 3, 2)).any()
    assert (second != order.reshuffled(total, 4, 1)).any()


def test_manifest(corpus):
    manifest = json.loads((corpus.path / "manifest.json").read_text())
    assert manifest["tokens"]["train"] == len(corpus.train) * corpus.train.length
    assert manifest["documents"]["train"] + manifest["documents"]["held_out"] == 467
    assert 3 < manifest["unigram_entropy"] < np.log(256)

import dataclasses
import gzip
import json
import lzma
import os
import shutil

import numpy as np
import pytest
from conftest import TINY, run_script, tiny_config

from cramjax.data import ordering, packing, prepare, sources, tokenizer
from cramjax.data.corpus import Blocks, Corpus
from cramjax.errors import UserError


def write_text(path, documents):
    path.write_text("\n\n".join(documents))
    return path


@pytest.mark.parametrize(
    ("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)]
)
def test_readers(tmp_path, suffix, opener):
    text = tmp_path / f"a.txt{suffix}"
    with opener(text, "wt") as file:
        file.write("\n\none\ntwo\r\n\n \n\nthree\n")
    assert list(sources.read_documents(text)) == ["one\ntwo", "three"]
    lines = tmp_path / f"b.jsonl{suffix}"
    with opener(lines, "wt") as file:
        file.write('{"text": "one\\n\\ntwo"}\n\n{"text": "  "}\n{"text": "three"}\n')
    assert list(sources.read_documents(lines)) == ["one\n\ntwo", "three"]


def test_broken_input_names_file_and_row(tmp_path):
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": "one"}\n{"title": "x", "body": "y"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl:2 has no field 'text'.*body.*title"):
        list(sources.read_documents(lines))
    lines.write_text('{"text": \n')
    with pytest.raises(UserError, match=r"b\.jsonl:1 is not JSON"):
        list(sources.read_documents(lines))
    cut = tmp_path / "c.txt.xz"
    cut.write_bytes(lzma.compress(b"hello " * 1000)[:-20])
    with pytest.raises(UserError, match=r"c\.txt\.xz is damaged"):
        list(sources.read_documents(cut))
    lines.write_text('{"text": "a \\ud800 b"}\n')
    assert list(sources.read_documents(lines)) == ["a ? b"]
    latin = tmp_path / "d.txt"
    latin.write_bytes(b"caf\xe9")
    assert list(sources.read_documents(latin)) == ["caf\ufffd"]


def test_resolve(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl.gz", "d.pdf"):
        (tmp_path / name).touch()
    names = [p.name for p in sources.resolve([f"{tmp_path}/*.txt", f"{tmp_path}/c*"])]
    assert names == ["a.txt", "b.txt", "c.jsonl.gz"]
    for wrong in (f"{tmp_path}/x*.txt", str(tmp_path), "embedded:boks"):
        with pytest.raises(UserError, match="config.data.sources"):
            sources.resolve([wrong])
    with pytest.raises(UserError, match=r"d\.pdf is neither"):
        sources.resolve([f"{tmp_path}/d.pdf"])


def test_normaliser():
    normalize = tokenizer.normalizer().normalize_str
    assert normalize("``Caf\u00e9''  \u00c5ngstr\u00f6m \u4e2d!") == '"cafe" angstrom !'


def test_the_same_text_gives_the_same_tokenizer():
    """In the library, ties and numbers depend on a hash map's order."""
    words = ["wel", "come", "to", "the", "tok", "en", "izers", "libr", "ary", "zero"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(words)) for _ in range(20)]
    trained = {tokenizer.train(lambda: texts, 50).to_str() for _ in range(20)}
    assert len(trained) == 1


def test_special_tokens_in_text_are_plain_characters(corpus):
    words = corpus.tokenizer
    ids = words.encode("a <mask> b <sep>", add_special_tokens=False).ids
    assert min(ids) >= len(tokenizer.SPECIAL_TOKENS) or 3 in ids  # 3: <unk>
    assert tokenizer.MASK not in ids and tokenizer.SEP not in ids
    assert [words.id_to_token(i) for i in range(7)] == list(tokenizer.SPECIAL_TOKENS)


def test_packing_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BLOCKS", 2)
    writer = packing.BlockWriter(tmp_path, "blocks", 4, 100)
    for document in ([10, 11, 5], [20, 21, 22, 23, 24, 25, 5], [30, 5], [40, 41, 5]):
        writer.add(document)
    shards = writer.close()
    assert shards == [2, 1]
    blocks = Blocks(tmp_path, "blocks", shards, 4)
    expected = [[10, 11, 5, 20], [21, 22, 23, 24], [25, 5, 30, 5]]  # 40, 41, 5 lost
    np.testing.assert_array_equal(blocks.take(np.arange(3)), expected)
    np.testing.assert_array_equal(blocks.take(np.array([2, 0])), expected[::-2])
    assert writer.token_counts_V[5] == 3
    (tmp_path / "blocks-00001.bin").write_bytes(b"xx")
    with pytest.raises(UserError, match="blocks-00001.bin is not the 8 bytes"):
        Blocks(tmp_path, "blocks", shards, 4)


def test_unigram_entropy():
    assert prepare.unigram_entropy(np.array([0, 4, 4])) == pytest.approx(np.log(2))


def test_blocks_are_the_documents_tokens(corpus, tiny):
    """The store holds exactly what the tokenizer says, in order, <sep> behind each."""
    words = corpus.tokenizer
    for prefix, held_out in ((corpus.train, False), (corpus.held_out, True)):
        ids = []
        for path in sources.resolve(tiny.data.sources):
            for text in sources.read_documents(path):
                if prepare.is_held_out(text, tiny.data.held_out_share) == held_out:
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
        ("", (), "no text in"),
        ("\n \n", (), "no text in"),
        ("a few words only", ("model.vocab_size=1024",), "config.model.vocab_size"),
        ("\u4e2d\u6587 \u4e2d", (), "the normaliser keeps ASCII characters only"),
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

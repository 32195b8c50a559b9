"""Dropping text that occurred before: equal documents, and repeated bytes."""

import collections
import copy
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_prepare import content, cores, write_texts
from tokenizers import Tokenizer, models

from cramjax.data import corpus as corpora
from cramjax.data import dedup, encode, prepare, repeats, sources, stages, tokenizer
from cramjax.data.readers import File, ReadContext
from cramjax.errors import UserError
from cramjax.tokens import SEP

RUN = "The quick brown fox jumps over the lazy dog, and then it does all of it again."


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    cores(monkeypatch, 1)
    monkeypatch.setattr(repeats, "MAX_SEARCHES", 1e9)


def write_files(folder, texts, per_file=2):
    """Writes documents, a few per file."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": text}) for text in texts]
    found = []
    for start in range(0, len(lines), per_file):
        path = folder / f"{start:04d}.jsonl"
        path.write_text("\n".join(lines[start : start + per_file]))
        found.append(File(path=path, size=path.stat().st_size))
    return found


def drop(folder, texts, *, per_file=2, **changes):
    """Returns what is left of documents, and the facts."""
    found = write_files(folder, texts, per_file)
    data = copy.copy(tiny_config("unused").data)
    for key, value in changes.items():  # smaller than a config may have
        object.__setattr__(data, key, value)
    stages.run(dedup.stages(found, data, folder))
    left, facts = dedup.deduplicated(found, folder)
    return [text for file in left for text in file.documents(ReadContext(data))], facts


def cut_by_definition(texts, min_bytes):
    """Looks at one window after the other, and at where each was first."""
    first, left, start = {}, [], 0
    for text in texts:
        data = text.encode()
        cut = set()
        for at in range(len(data) - min_bytes + 1):
            window = data[at : at + min_bytes]
            if first.setdefault(window, start + at) + min_bytes <= start + at:
                cut |= set(range(at, at + min_bytes))
        start += len(data) + 1
        kept, at = "", 0
        for character in text:  # goes if all its bytes do
            size = len(character.encode())
            if not cut >= set(range(at, at + size)):
                kept += character
            at += size
        left.append(kept.strip())
    return [text for text in left if text]


def test_of_equal_documents_the_first_stays(tmp_path):
    texts = ["one", "two", " one\n", "three", "two", "one!", "one", "four"]
    left, facts = drop(tmp_path, texts, drop_duplicates=True)
    assert left == ["one", "two", "three", "one!", "four"]
    assert (facts["documents"], facts["spans"], facts["bytes"]) == (3, 0, 9)
    assert facts["of_bytes"] == sum(len(text.strip()) for text in texts)


def test_a_run_shared_by_three_documents_stays_in_the_first(tmp_path):
    run = RUN[:75]
    texts = [
        f"first {run} end",
        f"{run} second",
        f"and {run}",
        f"{run[:74]}- {run[1:]}",
    ]
    left, facts = drop(tmp_path, texts, dedup_bytes=75)
    assert left == [texts[0], "second", "and", texts[3]]  # 74 bytes are too few
    assert (facts["documents"], facts["spans"], facts["bytes"]) == (0, 2, 152)
    assert facts["examples"] == [f"{run} ", f" {run}"]


def test_a_run_repeated_within_a_document_and_a_longer_one(tmp_path):
    run = RUN * 2  # 156 bytes, of which each half occurs within it, too
    left, facts = drop(tmp_path, [f"0{RUN}1{RUN}2", f"3{run}4"], dedup_bytes=75)
    assert left == [f"0{RUN}12", "34"]
    assert (facts["spans"], facts["bytes"]) == (2, 78 + 156)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a" * 9, "a" * 9),  # no occurrence ends before another begins
        ("a" * 10, "a" * 5),
        ("a" * 23 + "b", "a" * 5 + "b"),
        ("abc" * 8, "abc" * 2),
        ("abcdexabcde", "abcdex"),
    ],
)
def test_text_that_repeats_itself_at_once_stays_once(tmp_path, text, left):
    assert drop(tmp_path, [text], dedup_bytes=5)[0] == [left]
    assert cut_by_definition([text], 5) == [left]


def test_cuts_are_of_whole_characters(tmp_path):
    # UTF-8 of "é" is c3 a9, of "ĩ" c4 a9, of "è" c3 a8: a9 0 ... 9 c3 is in both.
    texts = ["é0123456789é", "zĩ0123456789è", "\U0001f600é" * 5]
    left, facts = drop(tmp_path, texts, dedup_bytes=11)
    assert left == ["é0123456789é", "zĩè", "\U0001f600é" * 2]
    assert facts["bytes"] == 12 + 18  # with what stays of their characters
    assert cut_by_definition(texts, 11) == left


def test_spans_do_not_touch():
    text_N = np.frombuffer(bytearray(b"abcd_efgh\xffxabcdefghyefgh\xff"), np.uint8)
    assert repeats.repeated(text_N, 4).tolist() == [[11, 19], [20, 24]]
    spans_Rx2 = np.array([[8, 9], [0, 5], [2, 4], [5, 6], [8, 8]])
    assert repeats.union(spans_Rx2).tolist() == [[0, 6], [8, 9]]
    assert repeats.union(spans_Rx2[:0]).tolist() == []


def test_no_run_goes_across_documents(tmp_path):
    texts = ["xxab", "cdyy", "abcd", "xxab!", "?cdyy", "xxab", "cdyy"]
    left, _ = drop(tmp_path, texts, dedup_bytes=4)
    assert left == ["xxab", "cdyy", "abcd", "!", "?"]
    assert drop(tmp_path / "empty", [" "], dedup_bytes=4)[0] == []


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(
        st.text(st.sampled_from("ab é\U0001f600"), max_size=30).map(str.strip),
        min_size=1,
        max_size=7,
    ),
    min_bytes=st.integers(1, 7),
    chunk_bytes=st.sampled_from([2, 40, 100, 1 << 20]),
)
@example(texts=["aaaaaaaaaaaa", "aaaa", "ab"], min_bytes=2, chunk_bytes=4)
def test_what_is_left_is_what_the_definition_says(texts, min_bytes, chunk_bytes):
    with tempfile.TemporaryDirectory() as folder:
        left, facts = drop(
            Path(folder), texts, dedup_bytes=min_bytes, dedup_chunk_bytes=chunk_bytes
        )
    texts = [text for text in texts if text]
    assert left == cut_by_definition(texts, min_bytes)
    assert facts["of_bytes"] == sum(len(text.encode()) for text in texts)


def random_documents(count, seed):
    """Returns documents with phrases, sentences and whole documents in common."""
    generator = random.Random(seed)
    phrases = [
        "".join(generator.choices("abcdefg é", k=generator.randint(5, 60)))
        for _ in range(count)
    ]
    texts = [
        "".join(generator.choices(phrases, k=generator.randint(1, 8))).strip()
        for _ in range(count)
    ]
    return [*texts, *generator.choices(texts, k=count // 5)]


def test_parts_of_any_size_give_the_same_cuts(tmp_path, monkeypatch):
    """And at once no more is searched than a chunk, and a document for each part."""
    texts = random_documents(100, seed=1)
    found, searched, repeated = [], [], repeats.repeated
    monkeypatch.setattr(
        repeats, "repeated", lambda x, *n: searched.append(len(x)) or repeated(x, *n)
    )
    for name, chunk_bytes in (("parts", 3000), ("whole", 1 << 20)):
        changes = {"drop_duplicates": True, "dedup_chunk_bytes": chunk_bytes}
        left, facts = drop(tmp_path / name, texts, dedup_bytes=24, **changes)
        found.append((left, {k: v for k, v in facts.items() if k != "chunks"}))
        assert (facts["chunks"] > 5) == (name == "parts")
        longest = max(len(text.encode()) for text in texts)
        assert max(searched) < chunk_bytes + 2 * longest
    assert found[0] == found[1]
    assert facts["documents"] >= 20 and facts["spans"] > 50
    names = {path.suffix for path in (tmp_path / "parts").iterdir()}
    assert names == {".jsonl", ".json", ".npy"}
    assert not list(tmp_path.glob("*/repeats*"))


def test_stopped_and_started_again_the_cuts_are_the_same(tmp_path, monkeypatch, capsys):
    texts = random_documents(60, seed=2)
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)

    def find(name):
        changes = {"drop_duplicates": True, "dedup_bytes": 20}
        changes |= {"per_file": 6, "dedup_chunk_bytes": 2500}
        return drop(tmp_path / name, texts, **changes)

    def made(name):
        names = (dedup.CUTS, dedup.FOUND)
        return [(tmp_path / name / file).read_bytes() for file in names]

    left, facts = find("whole")
    search, calls = repeats._search, []

    def stop_at_4(*args):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(args)
        return search(*args)

    monkeypatch.setattr(repeats, "_search", stop_at_4)
    with pytest.raises(KeyboardInterrupt):
        find("stopped")
    again = []
    monkeypatch.setattr(repeats, "_search", lambda *a: again.append(a) or search(*a))
    (tmp_path / "stopped" / "tables-00002.npy").unlink()
    (tmp_path / "stopped" / "text-00001.bin").unlink()
    assert find("stopped") == (left, facts)
    pairs = facts["chunks"] * (facts["chunks"] - 1) // 2
    assert len(again) == pairs - 4 > 0
    last = f"duplicates: {pairs} of {pairs} pairs of parts searched"
    assert last in capsys.readouterr().out
    assert made("stopped") == made("whole")
    # Both are made again if one is missing, none if both exist.
    (tmp_path / "stopped" / dedup.CUTS).unlink()
    find("stopped")
    assert made("stopped") == made("whole")
    monkeypatch.setattr(dedup, "_find_cuts", None)
    assert find("stopped") == (left, facts)


def config_of(tmp_path, *overrides, name="d"):
    """A corpus of 3 files: one sentence in many documents, some documents twice."""
    folder = tmp_path / "texts"
    pattern = write_texts(folder)
    for path in sorted(folder.iterdir()):
        documents = path.read_text().split("\n\n")
        for number in range(0, 60, 5):
            documents[number] = f"{documents[number]} {RUN}{documents[number + 1]}"
            documents[number + 2] = documents[2]
        path.write_text("\n\n".join(documents))
    return tiny_config(
        tmp_path / name,
        f"data.sources={pattern}",
        "model.vocab_size=64",
        "data.held_out_share=0.2",
        *overrides,
    )


BOTH = ("data.drop_duplicates=True", "data.dedup_bytes=40")


def documents_of(config):
    return [
        text
        for file in sources.resolve(config.data)
        for text in file.path.read_text().split("\n\n")
    ]


def test_the_corpus_is_that_of_the_text_that_is_left(tmp_path, said):
    config = config_of(tmp_path, *BOTH)
    corpus = prepare.prepare(config)
    documents = [text.strip() for text in documents_of(config)]
    # Repeats of a document that is dropped are none: its first copy has them, too.
    left = cut_by_definition(documents, 40)
    facts = corpus.manifest["duplicates"]
    assert facts["documents"] == len(documents) - len(set(documents)) > 30
    assert facts["spans"] >= 35 and facts["chunks"] == 1
    size = sum(len(text.encode()) for text in documents)
    assert facts["of_bytes"] == size
    bared = size - facts["bytes"] - sum(len(text.encode()) for text in left)
    assert 0 <= bared < len(documents)  # blanks that were beside what was cut
    written = collections.Counter(corpus.manifest["documents"])
    assert written.total() == len(left) < len(set(documents))
    expected = {False: [], True: []}
    for text in left:
        ids = corpus.tokenizer.encode(text, add_special_tokens=False).ids
        expected[encode.is_held_out(text, 0.2)] += [*ids, SEP]
    for blocks, held_out in ((corpus.train, False), (corpus.held_out, True)):
        tokens = expected[held_out][: len(expected[held_out]) // 32 * 32]
        np.testing.assert_array_equal(
            blocks.take(np.arange(len(blocks))), np.reshape(tokens, (-1, 32))
        )
        assert len(blocks) > 3
    assert said[0].startswith(
        f"duplicates: {facts['documents']} documents and {facts['spans']} spans "
    )
    names = {path.name.split("-")[0] for path in corpus.path.iterdir()}
    assert names == {
        *("blocks", "held_out", "manifest.json", "tokenizer.json"),
        *("report.md", "lengths.png"),
    }
    report = (corpus.path / "report.md").read_text()
    assert f"| equal to an earlier document, dropped | {facts['documents']} |" in report
    assert f"| spans of earlier text, cut out | {facts['spans']} |" in report
    assert f"| bytes of these | {facts['bytes']:,} ({facts['bytes'] / size:.2%}) |" in (
        report
    )
    quoted = "".join(f"\n    {text}\n" for text in facts["examples"])
    assert report.endswith(f"\n\n## Cut out, occurred before\n{quoted}")


def test_two_processes_and_a_stop_leave_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)
    monkeypatch.setattr(prepare, "SHARD_CHARS", 3000)
    whole = prepare.prepare(config_of(tmp_path, *BOTH, name="one"))
    assert len(whole.manifest["shards"]["blocks"]) > 5
    cores(monkeypatch, 2)
    two = prepare.prepare(config_of(tmp_path, *BOTH, name="two"))
    assert content(two.path) == content(whole.path)
    cores(monkeypatch, 1)
    config = config_of(tmp_path, *BOTH, name="stopped")
    encode_shard, calls = encode._encode_shard, []

    def stop_at_4(*args):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(args[-1])
        return encode_shard(*args)

    monkeypatch.setattr(encode, "_encode_shard", stop_at_4)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    monkeypatch.setattr(encode, "_encode_shard", encode_shard)
    (partial,) = (tmp_path / "stopped").glob("*.partial")
    assert calls[1].startswith("00000") and calls[3].startswith("00001")
    (partial / dedup.CUTS).unlink()
    (partial / "facts-00000-00001.json").unlink()
    assert content(prepare.prepare(config).path) == content(whole.path)


def test_the_tokenizer_does_not_see_what_is_dropped(tmp_path, monkeypatch):
    seen = []

    def note(documents, vocab_size, steps, kind):
        seen.extend(documents())
        return Tokenizer(models.WordPiece())

    config = config_of(tmp_path, *BOTH, "data.held_out_share=1e-9")
    monkeypatch.setattr(tokenizer, "train", note)
    found = sources.resolve(config.data)
    stages.run(dedup.stages(found, config.data, tmp_path))
    left, _ = dedup.deduplicated(found, tmp_path)
    prepare.train_tokenizer(config, left)
    assert seen == cut_by_definition(documents_of(config), 40)


def test_what_is_off_is_not_in_the_corpus_s_name(tmp_path):
    names = set()
    for overrides in ((), ("data.drop_duplicates=True",), BOTH[1:], BOTH):
        config = config_of(tmp_path, *overrides)
        names.add(prepare.corpus_path(config).name)
        settings = corpora.settings(config)
        assert ("drop_duplicates" in settings) == config.data.drop_duplicates
        assert ("dedup_bytes" in settings) == (config.data.dedup_bytes > 0)
        other = config_of(tmp_path, *overrides, "data.dedup_chunk_bytes=1e9")
        assert prepare.corpus_path(other) == prepare.corpus_path(config)
    assert len(names) == 4


def test_a_missing_package_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(UserError, match=r'data.dedup_bytes is 40.*"\.\[dedup\]"') as e:
        prepare.prepare(config_of(tmp_path, *BOTH))
    assert "\n" not in str(e.value)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["fingerprints.json"]
    corpus = prepare.prepare(config_of(tmp_path, BOTH[0]))
    facts = corpus.manifest["duplicates"]
    assert facts["documents"] > 30 and facts["spans"] == facts["chunks"] == 0


def test_too_much_text_to_search_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(repeats, "MAX_SEARCHES", 10_000)
    data = config_of(tmp_path, "data.dedup_bytes=50").data
    for size, refused in ((30 * 10**9, False), (10**12, True)):
        found = [File(path=Path("a.txt"), size=size)]
        if refused:
            with pytest.raises(
                UserError, match=r"data\.dedup_bytes is 50: .* 1,000 GB"
            ) as e:
                next(dedup.stages(found, data, tmp_path))
            assert "6,938,894 searches" in str(e.value)
            assert "data.near_duplicates=0.8" in str(e.value)
        else:
            assert next(dedup.stages(found, data, tmp_path))[0] == "documents"

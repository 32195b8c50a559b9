"""A corpus built by several tasks: the pool's bytes, whoever does what, and when."""

import random
import shutil
import threading
import time
import types

import numpy as np
import pytest
from conftest import tiny_config
from test_dedup import config_of, drop
from test_prepare import content, cores

from cramjax.commands import prepare as command
from cramjax.data import dedup, minhash, prepare, remote, sources, stages
from cramjax.errors import SourceLost, UserError

DROPS = ("data.drop_duplicates=True", "data.near_duplicates=0.8")


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Every file is a group of several shards; this process does all of its work."""
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)
    monkeypatch.setattr(prepare, "SHARD_CHARS", 3000)
    monkeypatch.setattr(stages, "POLL_S", 0.02)
    monkeypatch.setattr(dedup, "PARTITION_BYTES", 5000)
    cores(monkeypatch, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The texts' folder, and what the pool makes of them."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        small_units.__wrapped__(patch)
        return folder, content(prepare.prepare(config_of(folder, *DROPS)).path)


@pytest.mark.parametrize("tasks", [1, 3, 8])
def test_tasks_that_run_at_once_write_what_the_pool_does(whole, tasks, monkeypatch):
    """They take turns whenever one waits: in Python 3.11.2, two threads that read
    arrays at the same time can fail (tasks are processes)."""
    folder, expected = whole
    config = config_of(folder, *DROPS, name=f"at once {tasks}")
    errors, turn = [], threading.Lock()

    def sleep(seconds):
        turn.release()
        time.sleep(seconds)
        turn.acquire()

    monkeypatch.setattr(stages, "time", types.SimpleNamespace(sleep=sleep))

    def run(task):
        with turn:
            try:
                prepare.prepare_as_task(config, task, tasks)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in range(tasks)]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert content(prepare.corpus_path(config)) == expected
    names = {path.name for path in prepare.corpus_path(config).parent.iterdir()}
    assert names == {prepare.corpus_path(config).name, "fingerprints.json"}


def test_a_task_that_slept_while_others_did_the_rest_ends(whole, monkeypatch):
    folder, expected = whole
    config = config_of(folder, *DROPS, name="asleep")
    rest = iter([prepare.corpus_path, prepare.prepare])
    asleep = types.SimpleNamespace(sleep=lambda _: next(rest)(config))
    monkeypatch.setattr(stages, "time", asleep)
    prepare.prepare_as_task(config, 8, 9)
    assert content(prepare.corpus_path(config)) == expected


def test_stage_by_stage_a_task_that_was_killed_is_named(whole):
    folder, expected = whole
    config = config_of(folder, *DROPS, name="stages")
    draw = random.Random(3)
    for stage in prepare.STAGES:
        tasks = list(range(3))
        draw.shuffle(tasks)
        for task in tasks:
            if (stage, task) == ("blocks", 1):  # it is killed after its first shard
                (partial,) = (folder / "stages").glob("*.partial")
                (partial / "tokenizer.json").rename(partial / "later")
                with pytest.raises(UserError, match="stage tokenizer is not"):
                    prepare.prepare_as_task(config, task, 3, stage)
                (partial / "later").rename(partial / "tokenizer.json")
                continue
            prepare.prepare_as_task(config, task, 3, stage)
        if stage == "blocks":
            with pytest.raises(UserError, match=r"task 1 \(of 3\).* --stage=blocks"):
                prepare.prepare_as_task(config, 0, 3, "manifest")
            prepare.prepare_as_task(config, 1, 3, "blocks")
    assert content(prepare.corpus_path(config)) == expected


def test_a_remote_file_that_disappears_half_way_is_one_line(
    whole, tmp_path, monkeypatch
):
    """One task asks the server which files there are; the others take its answer."""
    folder, expected = whole
    texts = shutil.copytree(folder / "texts", tmp_path / "texts")
    config = tiny_config(
        tmp_path / "d",
        f"data.sources=('file://{texts}/*.txt',)",
        *("model.vocab_size=64", "data.held_out_share=0.2", *DROPS),
    )
    monkeypatch.setattr(remote, "RETRY_AFTER_S", (0.0,))
    with pytest.raises(UserError, match="stage sources is not finished"):
        prepare.prepare_as_task(config, 1, 2, "documents")
    prepare.prepare_as_task(config, 0, 2, "sources")
    monkeypatch.setattr(remote, "_ask", None)
    (texts / "1.txt").rename(texts / "away")
    with pytest.raises(SourceLost, match="1.txt: reading stopped .* continues") as lost:
        prepare.prepare_as_task(config, 1, 2, "documents")
    assert "\n" not in str(lost.value)
    (texts / "away").rename(texts / "1.txt")
    for stage in prepare.STAGES[1:]:
        for task in range(2):
            prepare.prepare_as_task(config, task, 2, stage)
    shards = {name: data for name, data in expected.items() if ".bin" in name}
    assert shards.items() <= content(prepare.corpus_path(config)).items()


def similar_texts(count):
    """Returns documents, copies of some with a few words changed, and exact J_NxN."""
    draw = random.Random(5)
    words = [f"w{i}" for i in range(500)]
    texts = [draw.choices(words, k=draw.randint(30, 200)) for _ in range(count)]
    for text in texts[: count // 2]:
        copy = list(text)
        for at in range(draw.randrange(0, 60, 6), len(copy), draw.randint(40, 80)):
            copy[at] = "other"
        texts.append(copy)
    sets = [{tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in texts]
    exact = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    return [" ".join(text).encode() for text in texts], np.array(exact)


def test_signatures_estimate_the_similarity_and_bands_find_it():
    texts, exact_NxN = similar_texts(60)
    mins_NxK = np.stack([minhash.signature(text) for text in texts])
    found_NxN = (mins_NxK[:, None] == mins_NxK[None]).mean(axis=2)
    error_NxN = found_NxN - exact_NxN
    assert np.abs(error_NxN).max() < 0.15 and np.abs(error_NxN.mean()) < 0.01
    long = [" ".join(f"{name}{i}" for i in range(30_000)).encode() for name in "ab"]
    a_K, b_K = map(minhash.signature, long)
    np.testing.assert_array_equal(minhash.signature(long[0].upper()), a_K)
    assert not (a_K.astype(np.uint16) == b_K.astype(np.uint16)).any()
    for threshold in (0.5, 0.8, 0.9):
        rows = minhash.band_rows(threshold)
        digests_NxBx2 = minhash.band_digests(mins_NxK, rows)
        same = (digests_NxBx2[:, None] == digests_NxBx2[None]).all(axis=3).any(axis=2)
        assert same[exact_NxN >= threshold].mean() > 0.99
        assert same[exact_NxN < 0.05].sum() == 0
    assert [minhash.band_rows(t) for t in (0.5, 0.8, 0.9, 1.0)] == [3, 6, 10, 60]
    assert minhash.band_digests(mins_NxK[:0], 6).shape == (0, 20, 2)  # an empty file


def test_of_connected_similar_documents_the_first_stays(tmp_path, monkeypatch):
    words = [f"w{i}" for i in range(200)]
    changed = [" ".join([*words[:n], "x", *words[n:]]) for n in (0, 50, 100, 150)]
    chain = [" ".join(words[n:] + [f"y{i}" for i in range(n)]) for n in (8, 16, 24)]
    other = " ".join(reversed(words))
    texts = ["short", *changed[:1], other, *changed[1:], *chain, "short", other]
    left, facts = drop(tmp_path, texts, near_duplicates=0.8)
    assert left == ["short", changed[0], other]
    assert (facts["documents"], facts["similar"], facts["of_documents"]) == (0, 8, 11)
    assert facts["bytes"] == sum(map(len, texts)) - sum(map(len, left))
    kept, dropped = facts["similar_examples"][::2], facts["similar_examples"][1::2]
    assert {*kept} <= {text[:200] for text in (changed[0], other)} and len(kept) == 3
    assert {*dropped} <= {text[:200] for text in texts}
    monkeypatch.setattr(dedup, "PARTITION_BYTES", 1 << 20)  # one, not several
    assert drop(tmp_path / "a", texts, near_duplicates=0.8) == (left, facts)
    halves = [[f"{i} {n}" for n in range(100)] for i in range(20)]
    related = [" ".join(h[m:n]) for h in halves for m, n in ((0, 80), (20, 100))]
    assert drop(tmp_path / "c", related, near_duplicates=0.8)[0] == related  # J is 0.6
    left, facts = drop(tmp_path / "b", texts, near_duplicates=1, drop_duplicates=True)
    assert left == texts[:-2]
    assert (facts["documents"], facts["similar"]) == (2, 0)


def test_flags_of_tasks(script_error, tmp_path):
    def error(*flags):
        folder = f"--config.data.dir={tmp_path}"
        return script_error("prepare_data.py", "--config=quickstart", folder, *flags)

    for flags in ("--tasks=3", "--task=0", "--stage=cuts --executor=ray"):
        assert f"{flags}: pass --tasks=N and --task" in error(*flags.split())
    assert "--task=3: must be from 0 to 2" in error("--task=3", "--tasks=3")
    assert "--stage=block: must be one of sources, d" in error("--stage=block")
    waits = error("--task=1", "--tasks=2", "--stage=blocks")
    assert "stage sources is not finished: first run its task 0 (of 2)" in waits
    assert "must be ray or slurm" in error("--executor=dask")
    assert all(stage in command.__doc__ for stage in prepare.STAGES)

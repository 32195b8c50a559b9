"""Text from TFDS and Hugging Face datasets, from folders made here: no network."""

import concurrent.futures
import pickle
import subprocess
import sys

import pyarrow
import pytest
from conftest import tiny_config
from pyarrow import parquet

from cramjax.data import huggingface, prepare, readers, sources, tokenizer, vocabulary
from cramjax.errors import SourceLost, UserError

TEXTS = [f"document {i} says that the cat {i} sat on the mat é" for i in range(60)]
RECORDS = [
    {"text": text, "meta": {"set": "ab"[i % 2]}, "n": i} for i, text in enumerate(TEXTS)
]
COMMON = ("model.vocab_size=60", "data.max_tokens_per_char=0.0")
HELD_OUT = "data.held_out_share=0.3"

# In a process of its own: what TFDS writes with warns of its own age.
WRITE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Words(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {"text": text, "meta": {"set": text}, "n": np.int64}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, text in enumerate(open(sys.argv[2]).read().split("\\n")):
            yield i, {"text": text, "meta": {"set": "ab"[i % 2]}, "n": i}

builder = tfds.builder("words", data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=3),
    file_format="array_record",
)
print(builder.data_path)
"""


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "texts").write_text("\n".join(TEXTS))
    command = [sys.executable, "-c", WRITE, str(folder), str(folder / "texts")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.fixture
def hf_folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hf").mkdir()
    for shard in range(3):
        table = pyarrow.Table.from_pylist(RECORDS[20 * shard : 20 * (shard + 1)])
        parquet.write_table(table, tmp_path / "hf" / f"part-{shard}.parquet")
    return str(tmp_path / "hf")


def read(config):
    """Returns the texts of every part."""
    problems = readers.Problems()
    reading = readers.Reading.of(config.data)
    return [
        list(sources.documents(pickle.loads(pickle.dumps(p)), reading, problems))
        for p in prepare.portions_of(config)[0]
    ]


@pytest.fixture(params=["tfds", "hf"])
def source(request, tfds_folder):
    if request.param == "tfds":
        return f"tfds:{tfds_folder}"
    return f"hf:{request.getfixturevalue('hf_folder')}"


def test_every_document_is_read_once(source, tmp_path):
    config = tiny_config(tmp_path / "d", f"data.sources={source}", *COMMON)
    parts = read(config)
    assert len(parts) == 3 and all(len(part) > 10 for part in parts)
    assert sorted(sum(parts, [])) == sorted(TEXTS)
    keep = ("data.keep=('meta.set=a',)", "data.max_documents=15")
    some = read(tiny_config(tmp_path / "d", f"data.sources={source}", *COMMON, *keep))
    assert all(5 <= len(part) <= 7 for part in some)
    assert set(sum(some, [])) < set(TEXTS[::2])


def test_a_corpus_of_it(source, tmp_path):
    overrides = (f"data.sources={source}", *COMMON, HELD_OUT)
    config = tiny_config(tmp_path / "d", *overrides)
    corpus = prepare.prepare(config, lambda _: None)
    assert sum(corpus.manifest["documents"].values()) == 60
    lines = []
    assert prepare.prepare(config, lines.append).path == corpus.path
    assert lines == [f"corpus: {corpus.path} (found)"]


def test_what_is_not_there_is_named(source, tmp_path):
    overrides = (f"data.sources={source}", *COMMON)
    with pytest.raises(UserError, match=r"no text in the field 'body'; it has \['meta"):
        read(tiny_config(tmp_path / "d", *overrides, "data.text_field=body"))
    with pytest.raises(UserError, match="dev.*train"):
        read(tiny_config(tmp_path / "d", *overrides, "data.split=dev"))


@pytest.mark.parametrize("name", ["tfds:nonesuch", "hf:a@b@c", "hf:"])
def test_wrong_names(name, tmp_path):
    with pytest.raises(UserError, match=f"config.data.sources: '?{name}") as caught:
        read(tiny_config(tmp_path / "d", f"data.sources={name}", *COMMON))
    assert "\n" not in str(caught.value)


def test_a_dataset_on_the_hub_is_asked_for_once(hf_folder, tmp_path, monkeypatch):
    """Its newest commit is kept, so that all processes and later runs read the same."""
    asked = []

    class Hub:
        def dataset_info(self, path, revision):
            asked.append((path, revision))
            return type("Info", (), {"sha": "abc123"})

    def load(path, config, revision, split):
        asked.append((path, config, revision, split))
        return original(hf_folder, None, None, split)

    original = huggingface._load
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(huggingface, "_load", load)
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: None)
    config = tiny_config(tmp_path / "d", "data.sources=hf:me/books:en", *COMMON)
    assert sorted(sum(read(config), [])) == sorted(TEXTS)
    assert asked[0] == ("me/books", None)
    assert set(asked[1:]) == {("me/books", "en", "abc123", "train")}
    asked.clear()
    facts = prepare.portions_of(config)[1]
    assert asked == [] and facts[0]["version"] == "abc123"
    assert len({part["sha256"] for part in facts}) == 3
    other = tiny_config(tmp_path / "d", "data.sources=hf:me/books:de", *COMMON)
    hashes = {part["sha256"] for part in prepare.portions_of(other)[1]}
    assert hashes.isdisjoint(part["sha256"] for part in facts)
    asked.clear()
    pinned = tiny_config(tmp_path / "d", "data.sources=hf:me/books@99", *COMMON)
    prepare.portions_of(pinned)
    assert asked[0] == ("me/books", "99")


def test_a_lost_connection_keeps_what_is_finished(hf_folder, tmp_path, monkeypatch):
    original = huggingface._load
    overrides = (f"data.sources=hf:{hf_folder}", *COMMON, HELD_OUT)
    config = tiny_config(tmp_path / "d", *overrides)
    broken = []

    def load(*args):
        stream = original(*args)

        class Stream:
            num_shards = stream.num_shards

            def shard(self, count, number):
                yield from list(stream.shard(count, number))[:10]
                if number in broken:
                    raise ConnectionError("reset by peer")
                yield from list(stream.shard(count, number))[10:]

        return Stream()

    monkeypatch.setattr(huggingface, "_load", load)
    # Here and in one process, where `load` is known.
    monkeypatch.setattr(prepare.processes, "cores", lambda: 1)
    words_json = tokenizer.train(
        lambda: TEXTS, 60, config.data.normalizer, "wordpiece"
    ).to_str()
    monkeypatch.setattr(vocabulary, "_check_normalizer", lambda *_: None)
    monkeypatch.setattr(vocabulary, "_train", lambda *_: words_json)
    monkeypatch.setattr(prepare.processes, "pool", SameProcess)
    broken.append(2)
    with pytest.raises(SourceLost, match="shard 2 of 3: reading stopped .reset by"):
        prepare.prepare(config, lambda _: None)
    (building,) = (tmp_path / "d").glob("*.partial")
    assert len(list(building.glob("facts-*.json"))) == 2
    broken.clear()
    corpus = prepare.prepare(config, lambda _: None)
    assert sum(corpus.manifest["documents"].values()) == 60


class SameProcess:
    """A pool that has no processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *args):
        future = concurrent.futures.Future()
        future.set_result(function(*args))
        return future

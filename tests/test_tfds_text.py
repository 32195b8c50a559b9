"""Text from TFDS, from a folder made here: no network."""

import pickle
import subprocess
import sys

import pytest
from conftest import tiny_config

from cramjax.data import prepare, sources
from cramjax.data.readers import ReadContext
from cramjax.errors import UserError

TEXTS = [f"document {i} says that the cat {i} sat on the mat é" for i in range(60)]
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


def read(config):
    """Returns the texts of every file, as a worker reads them."""
    return [
        list(pickle.loads(pickle.dumps(file)).documents(ReadContext(config.data)))
        for file in sources.resolve(config.data)
    ]


@pytest.fixture
def source(tfds_folder):
    return f"tfds:{tfds_folder}"


def test_every_document_is_read_once(source, tmp_path):
    config = tiny_config(tmp_path / "d", f"data.sources={source}", *COMMON)
    parts = read(config)
    assert len(parts) == 3 and all(len(part) > 10 for part in parts)
    assert sorted(sum(parts, [])) == sorted(TEXTS)
    keep = ("data.keep=('meta.set=a',)", "data.max_documents=15")
    some = read(tiny_config(tmp_path / "d", f"data.sources={source}", *COMMON, *keep))
    assert all(5 <= len(part) <= 7 for part in some)
    assert set(sum(some, [])) < set(TEXTS[::2])


def test_a_corpus_of_it(source, tmp_path, said):
    overrides = (f"data.sources={source}", *COMMON, HELD_OUT)
    config = tiny_config(tmp_path / "d", *overrides)
    corpus = prepare.prepare(config)
    assert sum(corpus.manifest["documents"].values()) == 60
    assert prepare.prepare(config).path == corpus.path
    assert said[-1] == f"corpus: {corpus.path} (found)"


def test_what_is_not_there_is_named(source, tmp_path):
    overrides = (f"data.sources={source}", *COMMON)
    with pytest.raises(UserError, match=r"no text in the field 'body'; it has \['meta"):
        read(tiny_config(tmp_path / "d", *overrides, "data.text_field=body"))
    with pytest.raises(UserError, match="dev.*train"):
        read(tiny_config(tmp_path / "d", *overrides, "data.split=dev"))


def test_wrong_names(tmp_path):
    config = tiny_config(tmp_path / "d", "data.sources=tfds:nonesuch", *COMMON)
    with pytest.raises(UserError, match="config.data.sources: tfds:none") as caught:
        read(config)
    assert "\n" not in str(caught.value)

"""What a redesign must not change: losses, corpora, scores, sizes and errors.

The numbers are in golden/frozen.json. `python tests/test_frozen.py` writes them anew,
which is right only for a change that is meant to alter them.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import pyarrow
import pytest
from conftest import TINY, tiny_config
from pyarrow import parquet
from test_tfds_text import WRITE

from cramjax.config import load
from cramjax.data.prepare import prepare
from cramjax.main import main
from cramjax.model.encoder import MaskedLM
from cramjax.run import run

GOLDEN = Path(__file__).parent / "golden" / "frozen.json"
WRITES = "CRAMJAX_WRITE_FROZEN"  # set in the environment to write instead of compare


def frozen(key, found):
    """Returns what is recorded; records what is found if that is asked for."""
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if WRITES in os.environ:
        recorded[key] = found
        text = json.dumps(recorded, indent=1, sort_keys=True)
        GOLDEN.write_text(text + "\n")
    return recorded[key]


# Each in an order of its own; a length of 16 takes half of a block's tokens.
RUNS = {
    "quickstart": (),
    "muon": ("optimizer.name=muon", "data.order=sentence_length"),
    "curriculum": (
        *("curriculum.lengths=(16,32)", "curriculum.starts=(0.0,0.3)"),
        *("curriculum.unfold=False", "data.order=unigram", "budget.tokens=2100"),
    ),
    "documents": ("objective.separate_documents=True", "data.order=fragments"),
}


@pytest.mark.parametrize("name", RUNS)
def test_losses(name, corpus, data_dir, tmp_path):
    more = ("budget.tokens=2560", "log.every_steps=1", "glue.tasks=()", *RUNS[name])
    run(tiny_config(data_dir, "validation.max_blocks=2", *more), tmp_path / "w")
    lines = map(json.loads, (tmp_path / "w/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "event" not in line][:20]
    assert len(losses) == 20
    assert losses == pytest.approx(frozen(f"losses {name}", losses), rel=1e-6)


# Names of corpora hold the hash of the file, which the writing library's version
# decides: of these files, only the blocks are compared.
BY_LIBRARIES = ("jsonl.gz", "jsonl.zst", "parquet", "tfds")
CORPORA = {
    "books": "embedded:books",
    "txt": "a.txt",
    "jsonl": "a.jsonl",
    "jsonl.gz": "a.jsonl.gz",
    "jsonl.zst": "a.jsonl.zst",
    "parquet": "a.parquet",
    "memory": "memory://frozen/*",
    "tfds": "tfds:",
    "lines": "a.txt data.txt_documents=line data.join_chars=400",
    "two": "('a.txt','b.txt') data.shares=(1,3) data.max_chars=50000",
    "kept": "a.jsonl data.keep=('meta.n=1|2',) data.max_documents=150",
    "exact": "a.txt data.drop_duplicates=True",
    "substring": "a.txt data.dedup_bytes=60",
    "both": "a.txt data.drop_duplicates=True data.dedup_bytes=60",
    "bpe": "a.txt data.tokenizer_kind=bpe data.cls=True data.normalizer=('nfd',)",
    "bpe substring": "a.txt data.tokenizer_kind=bpe data.dedup_bytes=60 data.sep=False",
    "filtered": "a.txt data.max_tokens_per_char=0.28 data.min_document_chars=150",
}


def texts():
    """Returns documents of invented words, some repeated whole and some in part."""
    draw = random.Random(17)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "io", "ú")]
    words = ["".join(draw.choices(syllables, k=1 + i % 3)) for i in range(300)]
    found = []
    for number in range(300):
        sentence = " ".join(draw.choices(words, k=15 + number % 30))
        found.append(f"{sentence.capitalize()}.\n{' '.join(draw.choices(words, k=9))}")
    return [*found, *found[:40], *(text[20:] for text in found[40:80])]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with the same documents in every format; the last is of TFDS."""
    folder = tmp_path_factory.mktemp("texts")
    documents = texts()
    joined = "\n\n".join(documents)
    (folder / "a.txt").write_text(joined)
    (folder / "b.txt").write_text("\n\n".join(reversed(documents)))
    fsspec.filesystem("memory").pipe("/frozen/a.txt", joined.encode())
    rows = [{"text": t, "meta": {"n": i % 4}} for i, t in enumerate(documents)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    packed = pyarrow.compress(lines, "zstd", asbytes=True)
    (folder / "a.jsonl.zst").write_bytes(packed)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    (folder / "texts").write_text("\n".join(t.replace("\n", " ") for t in documents))
    command = [sys.executable, "-c", WRITE, str(folder), str(folder / "texts")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.split()[-1]


@pytest.mark.parametrize("name", CORPORA)
def test_corpora(name, sources, tmp_path, monkeypatch):
    """The folder's name, of which a run depends when it is resumed, and the blocks."""
    folder, tfds = sources
    monkeypatch.chdir(folder)
    source, *more = CORPORA[name].replace("tfds:", f"tfds:{tfds}").split()
    config = Path(__file__).parents[1] / "configs/quickstart.py"
    common = ("model.vocab_size=200", "data.held_out_share=0.2", f"data.dir={tmp_path}")
    made = prepare(load(config, [*TINY, *common, f"data.sources={source}", *more])).path
    digest = hashlib.sha256()
    for path in sorted(made.glob("*.bin")):
        digest.update(path.name.encode() + path.read_bytes())
    corpus = made.name.partition("-")[0] if name in BY_LIBRARIES else made.name
    found = {"name": corpus, "shards": digest.hexdigest()}
    assert found == frozen(f"corpus {name}", found)


def test_scores(finished):
    """The keys of glue.json, and its scores; how long it took is not compared."""
    results = json.loads((finished[0] / "glue.json").read_text())

    def keys(tree):
        return {k: keys(v) for k, v in tree.items()} if isinstance(tree, dict) else ""

    assert keys(results) == frozen("keys of glue.json", keys(results))
    starts = results["tasks"]["intents10"]["starts"]
    found = {
        f"{name} {rate}": [round(x, 4) for x in scores]
        for name, start in starts.items()
        for rate, scores in start["scores"].items()
    }
    recorded = frozen("scores", found)
    assert found.keys() == recorded.keys()
    for name, scores in found.items():
        assert scores == pytest.approx(recorded[name], abs=1e-3)


def names_of_configs():
    for path in sorted(Path("configs").glob("*.py")):
        if path.stem not in ("__init__", "default"):
            yield str(path)
    for path in sorted(Path("configs/ablations").glob("[a-z]*.py")):
        yield from (f"{path}:{row}" for row in runpy.run_path(str(path))["ROWS"])


def test_parameter_counts():
    known = {}

    def count(model):
        tokens_1xL = jnp.zeros((1, model.max_length), jnp.int32)
        init = MaskedLM(dataclasses.replace(model, attention="xla")).init
        found = jax.eval_shape(init, jax.random.key(0), tokens_1xL, tokens_1xL[:, :1])
        return sum(x.size for x in jax.tree.leaves(found))

    def counted(name):
        model = load(name).model
        if model not in known:
            known[model] = count(model)
        return known[model]

    found = {name: counted(name) for name in names_of_configs()}
    assert found == frozen("parameters", found)


if __name__ == "__main__":
    os.environ[WRITES] = "1"
    GOLDEN.unlink(missing_ok=True)
    sys.exit(pytest.main([__file__, "-q", "-p", "no:xdist"]))

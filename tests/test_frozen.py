"""What a redesign must not change: losses, corpora, scores, sizes and errors.

The numbers are in golden/frozen.json. `python tests/test_frozen.py` writes them anew,
which is right only for a change that is meant to alter them.
"""

import dataclasses
import functools
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

from cramjax import files
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


OFF = ("averaging.ema_decay=0.0", "averaging.lawa_last=0")
# Each in an order of its own; a length of 16 takes half of a block's tokens.
RUNS = {
    "quickstart": (),
    "muon": (*OFF, "optimizer.name=muon", "data.order=sentence_length"),
    "curriculum": (
        *OFF,
        *("curriculum.lengths=(16,32)", "curriculum.starts=(0.0,0.3)"),
        *("curriculum.unfold=False", "data.order=unigram", "budget.tokens=2100"),
    ),
    "documents": (
        *OFF,
        *("objective.separate_documents=True", "data.order=fragments"),
    ),
}


@pytest.mark.parametrize(
    "name", [*list(RUNS)[:-1], pytest.param("documents", marks=pytest.mark.slow)]
)
def test_losses(name, finished, data_dir, tmp_path):
    """After the finished run, which has compiled most of it."""
    more = ("budget.tokens=2560", "log.every_steps=1", "glue.tasks=()", *RUNS[name])
    run(tiny_config(data_dir, *more), tmp_path / "w")
    lines = map(json.loads, (tmp_path / "w/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "event" not in line][:20]
    assert len(losses) == 20
    assert losses == pytest.approx(frozen(f"losses {name}", losses), rel=1e-6)


# Names of corpora hold the hash of the files, which the writing library's version
# decides, or in memory the time: of these, only the blocks are compared.
CHANGING = ("jsonl.gz", "jsonl.zst", "parquet", "memory", "tfds")
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
    "filtered": "a.txt data.max_tokens_per_char=0.5 data.min_document_chars=150",
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
def test_corpora(name, sources, corpus, tmp_path, monkeypatch):
    """The folder's name, of which a run depends when it is resumed, and the blocks."""
    folder, tfds = sources
    monkeypatch.chdir(folder)
    source, *more = CORPORA[name].replace("tfds:", f"tfds:{tfds}").split()
    config = Path(__file__).parents[1] / "configs/small.py"
    more += ["model.vocab_size=200", "data.held_out_share=0.2", f"data.dir={tmp_path}"]
    if name != "books":
        corpus = prepare(load(config, [*TINY, f"data.sources={source}", *more]))
    made = corpus.path
    digest = hashlib.sha256()
    for path in sorted(made.glob("*.bin")):
        digest.update(path.name.encode() + path.read_bytes())
    corpus = made.name.partition("-")[0] if name in CHANGING else made.name
    found = {"name": corpus, "shards": digest.hexdigest()}
    assert found == frozen(f"corpus {name}", found)


def test_scores(finished):
    """The keys of glue.json, and its scores; how long it took is not compared."""
    results = files.read_json(finished[0] / "glue.json", "")

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
        assert scores == pytest.approx(recorded[name], abs=0.1)  # two rows
    summary = files.read_json(finished[0] / "pretrain.json", "")
    names = ("held_out_loss", "bits_per_byte", "train_loss", "model_flops", "updates")
    found = {name: summary[name] for name in (*names, "unigram_entropy", "averages")}
    assert found.keys() == frozen("summary", found).keys()
    for name, value in found.items():
        assert value == pytest.approx(frozen("summary", found)[name], rel=1e-5)


def names_of_configs():
    for path in sorted(Path("configs").glob("*.py")):
        if path.stem not in ("__init__", "default"):
            yield str(path)
    for path in sorted(Path("configs/ablations").glob("[a-z]*.py")):
        yield from (f"{path}:{row}" for row in runpy.run_path(str(path))["ROWS"])


@pytest.mark.slow  # test_architecture counts every row by hand
def test_parameter_counts():
    """From the shapes of one and two periods of layers: the rest has as many each."""

    @functools.cache
    def count(model, layers):
        tokens_1xL = jnp.zeros((1, model.max_length), jnp.int32)
        init = MaskedLM(dataclasses.replace(model, layers=layers)).init
        found = jax.eval_shape(init, jax.random.key(0), tokens_1xL, tokens_1xL[:, :1])
        return sum(x.size for x in jax.tree.leaves(found))

    found = {}
    for name in names_of_configs():
        model = load(name).model
        # These have no parameters; and without them many rows have the same model.
        same = {"attention": "xla", "init": "normal", "dtype": "float32"}
        same |= {"init_std": 0.02, "sparse_prediction": True, "norm_eps": 1e-12}
        model, layers = dataclasses.replace(model, **same), model.layers
        period, rest = model.ffn_every, layers % model.ffn_every
        one, two = (count(model, rest + n * period) for n in (1, 2))
        found[name] = one + (layers // period - 1) * (two - one)
    assert found == frozen("parameters", found)


# Flags, and what the error says of them: the key or file, the value, the way out.
# Without dashes it is a key of the config; {tmp} is a folder with the files below.
WRONG = {
    "--wokdir=w": "--wokdir --workdir",
    "--qqq=1": "--qqq",
    "--tasks=rte": "--tasks --config.glue.tasks",
    "--rehearse=yes": "--rehearse value",
    "stray": "'stray' =value",
    "--config.seed 5": "--config.seed =VALUE",
    "--config=configs/a4000.py": "configs/a4000.py configs/small.py",
    "xyz=1": "config.xyz",
    "modl.width=8": "config.modl.width --config.model.width",
    "data=x": "--config.data KEY=VALUE",
    "model.layers=two": "config.model.layers 'two' whole",
    "model.norm_eps=abc": "config.model.norm_eps 'abc' number",
    "data.cls=maybe": "config.data.cls 'maybe' True False",
    "data.shares=(1,'x')": "config.data.shares[1] 'x' number",
    "model.heads=5": "config.model.heads 5 model.width",
    "model.dtype=float64": "config.model.dtype 'float64' bfloat16",
    "model.vocab_size=8": "config.model.vocab_size 8 16",
    "model.positions=sine": "config.model.positions 'sine' learned",
    "micro_batch=4096": "config.micro_batch 4096 batch.sequences=12",
    "budget.hours=1": "hours=1 tokens=5120 --config.budget.hours=0",
    "budget.tokens=0": "config.budget.hours tokens --config.budget.hours=24",
    "optimizer.name=adam": "config.optimizer.name 'adam' adamw",
    "optimizer.learning_rate=inf": "config.optimizer.learning_rate inf finite",
    "schedule.falloff=1.0": "config.schedule.falloff 1.0 0",
    "objective.mask_rate=0.001": "config.objective.mask_rate 0.001 32",
    "objective.random_share=0.3": "config.objective.random_share 0.3 mask_share",
    "averaging.ema_decay=1.0": "config.averaging.ema_decay 1.0 [0",
    "curriculum.lengths=(32,8)": "config.curriculum.lengths (32, increasing",
    "guard.rate_factor=1.0": "config.guard.rate_factor 1.0 0",
    "data.order=shuffled": "config.data.order 'shuffled' random",
    "data.dedup_bytes=3": "config.data.dedup_bytes 3 16",
    "data.near_duplicates=0.3": "config.data.near_duplicates 0.3 0.5",
    "data.keep=('meta',)": "config.data.keep 'meta' FIELD=VALUE",
    "glue.starts=('ema2',)": "config.glue.starts 'ema2' pretrained",
    "glue.tasks=('intent',)": "config.glue.tasks 'intent' intents",
    "glue.batch_size=64": "config.glue.batch_size 64 config.glue.max_train_rows=32",
    "platform=gpu": "config.platform 'gpu' --config.platform=any",
    "data.sources=()": "config.data.sources () --config.data.sources=",
    "data.sources={tmp}/no.txt": "config.data.sources {tmp}/no.txt glob",
    "data.sources={tmp}": "config.data.sources {tmp} *.txt",
    "data.sources={tmp}/a.docx": "config.data.sources {tmp}/a.docx .jsonl",
    "data.sources=embedded:film": "config.data.sources 'embedded:film' books",
    "data.sources=memory://nothing/*": "config.data.sources memory://nothing/*",
    "data.sources={tmp}/blank.txt": "config.data.sources {tmp}/blank.txt txt_documents",
    "data.sources={tmp}/short.txt model.vocab_size=16": "config.model.vocab_size 16 27",
    "data.sources={tmp}/short.txt": "config.model.vocab_size 256 --config.model.vocab",
    "data.sources={tmp}/a.jsonl data.text_field=body": "a.jsonl 'body' text_field",
    "data.tokenizer={tmp}/no.json": "config.data.tokenizer {tmp}/no.json",
    "data.tokenizer={tmp}/a.jsonl": "{tmp}/a.jsonl tokenizer",
    "data.dir={tmp}/blank.txt": "config.data.dir {tmp}/blank.txt another",
    "--workdir={tmp}/blank.txt": "--workdir {tmp}/blank.txt folder",
    "--workdir={tmp}/damaged": "{tmp}/damaged/config.json --workdir",
    "--workdir={tmp}/later": "{tmp}/later/config.json 99 --workdir",
    "--workdir={finished} model.layers=3": "{finished} config.model.layers 3 --workdir",
    "glue.tasks=('own',) glue.own_dir={tmp}": "{tmp}/train.tsv:3 columns",
    "glue.tasks=('own',) glue.own_dir={tmp} glue.own_label=mark": "train.tsv 'mark'",
}
ALONE = {
    "": "config a4000",
    "--confg=configs/small.py": "--confg --config",
    "--config=configs/nowhere.py": "configs/nowhere.py a4000",
    "--config=configs/small.py:row": "configs/small.py:row rows",
    "--config=configs/ablations/training.py:minimall": "'minimall' 'minimal'",
    "--config=configs/data/c4.py:h20": "h20 a4000",
    "--config={tmp}/broken.py": "{tmp}/broken.py ZeroDivisionError",
}


def exits_with_one_line(argv, words, capsys):
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert [word for word in words.split() if word not in error] == [], error


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    for name, text in {
        "a.docx": "text",
        "blank.txt": " \n",
        "short.txt": "a few words of text\n\nand a few more of them",
        "a.jsonl": '{"text": "a few words"}\n',
        "broken.py": "1 / 0",
        "train.tsv": "text\tlabel\na\t1\nb\n",
        "damaged/config.json": "{",
        "later/config.json": '{"format": 99}',
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("flags", WRONG)
def test_errors(flags, faulty, tmp_path, capsys, request):
    places = {"tmp": str(faulty)}
    if "{finished}" in flags:
        places["finished"] = str(request.getfixturevalue("finished")[0])
    keys = (*TINY, f"data.dir={tmp_path}")
    argv = ["--config=configs/small.py", *(f"--config.{key}" for key in keys)]
    if "--workdir" not in flags:
        argv.append(f"--workdir={tmp_path}/w")
    for flag in flags.format(**places).split():
        key = "=" in flag and not flag.startswith("-")
        argv.append(f"--config.{flag}" if key else flag)
    exits_with_one_line(argv, WRONG[flags].format(**places), capsys)


@pytest.mark.parametrize("flags", ALONE)
def test_errors_of_config_files(flags, faulty, capsys):
    argv = [*flags.format(tmp=faulty).split(), "--workdir=w"]
    exits_with_one_line(argv, ALONE[flags].format(tmp=faulty), capsys)


if __name__ == "__main__":
    os.environ[WRITES] = "1"
    GOLDEN.unlink(missing_ok=True)
    sys.exit(pytest.main([__file__, "-q", "-p", "no:xdist"]))

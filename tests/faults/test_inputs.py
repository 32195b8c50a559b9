"""What others wrote, changed at random: rows, a count or one line; never a traceback.

Every reader gets bytes or JSON values that were changed in a few places.
"""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_pretrained import BERT, golden, write_folder
from test_sources import PACKERS, read

from cramjax import config as config_module
from cramjax import files
from cramjax.checkpoints import convert
from cramjax.checkpoints.load import load_foreign
from cramjax.config import Config, from_dict, to_dict
from cramjax.data import tokenizer
from cramjax.data.corpus import Corpus
from cramjax.data.sources import Fingerprints
from cramjax.errors import UserError
from cramjax.flags import parse_command_line
from cramjax.glue import data, tasks

few, many = 1, pytest.param(30, marks=pytest.mark.slow)
times = pytest.mark.parametrize("factor", [few, many])
SMALL = st.integers(-3, 300) | st.sampled_from([2**31, 2**63, -(2**63), 10**30])
VALUES = st.recursive(
    st.none() | st.booleans() | SMALL | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x),
    max_leaves=5,
)


def check(strategy, examples, function):
    """Calls it with drawn inputs; only a UserError of one line may end it."""

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(strategy)
    def one(value):
        try:
            function(value)
        except UserError as error:
            assert str(error) and "\n" not in str(error)

    one()


def edited(content):
    """Draws bytes with a few changed, and perhaps cut."""
    size = len(content)
    edits = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)))

    def apply(drawn):
        changes, end = drawn
        found = bytearray(content)
        for place, byte in changes:
            found[place] = byte
        return bytes(found[:end])

    return st.tuples(edits, st.just(size) | st.integers(0, size)).map(apply)


@st.composite
def altered(draw, value):
    """Draws a JSON value in which one part is another, or missing."""
    value = json.loads(json.dumps(value))
    place = value
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(keys))
        nested = isinstance(place[key], (dict, list)) and place[key]
        if nested and draw(st.integers(0, 3)):
            place = place[key]
            continue
        if draw(st.integers(0, 4)):
            place[key] = draw(VALUES)
        else:
            del place[key]
        return value


TEXT = "one two\n\nthree \u00fcber four\n\nfive\n".encode() * 3
JSONL = b'{"text": "one two"}\n{"text": null, "n": {"m": 1}}\n{"text": "four"}\n'
CSV = b'text,n\n"one, ""two""",1\nthree,2\n'
TABLE = pyarrow.table({"text": ["one", None, "two"] * 5, "n": [{"m": 1}] * 15})
parquet.write_table(TABLE, PARQUET := pyarrow.BufferOutputStream())
CONTENT = {"txt": TEXT, "jsonl": JSONL, "csv": CSV}
CONTENT["parquet"] = PARQUET.getvalue().to_pybytes()


@times
def test_texts(tmp_path, factor):
    packed = [(kind, packing) for packing in (".gz", ".zst") for kind in ("txt", "csv")]
    for kind, packing in [*packed, *((kind, "") for kind in CONTENT)]:
        path = tmp_path / f"a.{kind}{packing}"

        def one(content, path=path):
            path.write_bytes(content)
            documents, problems = read(path)
            assert sum(map(len, documents)) <= 100 * len(TEXT)
            assert all(count > 0 for count in problems.values())

        content = PACKERS[packing](CONTENT[kind])
        check(edited(content), (25 if kind == "parquet" else 8) * factor, one)


TSV = b'id\tsentence\tlabel\n0\ta cat\t1\n1\ta dog, "b"\t0\n\n'
ROWS = b'{"premise": "a", "hypothesis": "b", "label": "entailment", "idx": 1}\n' * 3


@times
def test_rows_of_tasks_and_of_predict(tmp_path, factor):
    glue = tiny_config("unused", f"glue.superglue_dir={tmp_path}").glue
    glue = dataclasses.replace(glue, data_dir=str(tmp_path))

    def one_tsv(content):
        (tmp_path / "a.tsv").write_bytes(content)
        list(data.texts_of(tmp_path / "a.tsv", ("sentence", "id")))

    check(edited(TSV), 15 * factor, one_tsv)
    for name, content in (("multirc", MULTIRC), ("cb", ROWS), ("wic", WIC)):
        [task] = tasks.get(dataclasses.replace(glue, tasks=(name,)))

        def one(content, task=task):
            for split in (task.train, task.dev[0].split):
                path = tmp_path / split.files[0]
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            data.load(task, glue)

        check(edited(content), 5 * factor, one)
        lines = st.lists(altered(json.loads(content.splitlines()[0])), max_size=3)
        check(
            lines.map(lambda x: "\n".join(map(json.dumps, x)).encode()), 8 * factor, one
        )


WIC = (
    b'{"word": "a", "sentence1": "b", "sentence2": "c", "idx": 0, "label": true, '
    b'"start1": 0, "start2": 0, "end1": 1, "end2": 1}\n'
)
MULTIRC = (
    b'{"idx": 0, "passage": {"text": "a", "questions": [{"question": "b", "answers": '
    b'[{"text": "c", "idx": 0, "label": 0}], "idx": 0}]}}\n'
)


@times
def test_flags_and_config_values(factor):
    keys = st.sampled_from(sorted(config_module.root.KEYS))
    text = st.text(max_size=8) | VALUES.map(repr) | st.sampled_from(["(1,", "1e999"])
    flag = st.tuples(keys, text).map(lambda x: f"--config.{x[0]}={x[1]}")
    flag |= st.text(max_size=8) | st.text(max_size=8).map("--".__add__)
    check(
        st.lists(flag, min_size=1, max_size=3),
        40 * factor,
        lambda flags: parse_command_line(["--config=quickstart", *flags], ["workdir"]),
    )
    check(altered(to_dict(Config())), 40 * factor, from_dict)


@times
def test_models_of_others(tmp_path, factor):
    folder = write_folder(tmp_path / "theirs", BERT, golden("hf_bert_tiny")[1])
    kept = shutil.copytree(folder, tmp_path / "kept")
    names = ("config.json", "tokenizer.json", "model.safetensors")
    before = {name: (kept / name).read_bytes() for name in names}

    def one_json(name):
        def one(values):
            (folder / name).write_text(json.dumps(values))
            load_foreign(folder)

        check(altered(json.loads(before[name])), 10 * min(factor, 6), one)
        (folder / name).write_bytes(before[name])

    one_json("config.json")
    one_json("tokenizer.json")

    content, path = before["model.safetensors"], folder / "model.safetensors"
    start = 8 + int.from_bytes(content[:8], "little")

    def header(values):
        head = json.dumps(values).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + content[start:])
        convert.load_tensors(path)

    check(altered(json.loads(content[8:start])), 30 * factor, header)


@times
def test_a_manifest_and_what_is_remembered(corpus, tmp_path, factor):
    folder = shutil.copytree(corpus.path, tmp_path / "copy")
    manifest, known = folder / "manifest.json", (folder / "manifest.json").read_bytes()

    def one(content):
        manifest.write_bytes(content)
        Corpus(folder).train.take(np.arange(2))

    check(edited(known), 20 * factor, one)
    values = json.loads(known)
    values["shards"]["blocks"][0]["file"] = "../elsewhere.bin"
    files.write_record(manifest, values)
    shutil.copy(folder / "blocks-00000-00000.bin", tmp_path / "elsewhere.bin")
    with pytest.raises(UserError, match="copy/elsewhere.bin does not have the"):
        Corpus(folder)
    manifest.write_bytes(known)
    words = (folder / "tokenizer.json").read_bytes()

    def one_tokenizer(content):
        (folder / "tokenizer.json").write_bytes(content)
        tokenizer.load(folder / "tokenizer.json", "hint").encode("a text")

    check(edited(words), 10 * factor, one_tokenizer)

    def one_cache(content):
        (tmp_path / "fingerprints.json").write_bytes(content)
        Fingerprints(str(tmp_path)).sha256(folder / "tokenizer.json")

    files.write_record(tmp_path / "r.json", {f"{folder}/tokenizer.json": [1, 2, "x"]})
    check(edited((tmp_path / "r.json").read_bytes()), 10 * factor, one_cache)

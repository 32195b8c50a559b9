"""Exports: what is in the folder, read back by path, and computed by transformers."""

import errno
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import unpacked
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import cramjax
from cramjax import config as config_module
from cramjax import files, likelihood
from cramjax.checkpoints import classifier, weights
from cramjax.checkpoints.classifier import SavedClassifier
from cramjax.checkpoints.export import export
from cramjax.config import FORMAT
from cramjax.errors import UserError
from cramjax.main import main
from cramjax.model.encoder import Classifier, MaskedLM
from cramjax.tokens import CLS, PAD, SEP, SPECIAL_TOKENS

ROWS = config_module.module("ablations/architecture").ROWS
SHAPE = {"width": 32, "ffn_width": 64, "heads": 4}
LOCAL = {"global_every": 3, "local_window": 2, "layers": 4}
LOCAL |= {"rotary_base": 500.0, "local_rotary_base": 200.0}
ODD = {
    "modern-local": ROWS["modern"].changes | SHAPE | LOCAL,
    "many-at-once": ROWS["modern"].changes
    | SHAPE
    | LOCAL
    | {"positions": "learned+rotary", "repeats": 2, "norm": "rmsnorm", "token_types": 2}
    | {"linear_bias": True, "qkv_bias": True, "decoder_bias": True, "ffn_every": 2},
    "late-masks": SHAPE
    | {"positions": "rotary", "layers": 3, "late_masks": 2}
    | {"sparse_last_layer": True},
}
LABELS = ("bad", "good", "fair")
TEXTS = ["the king of the sea", "a ship", "she said that it was good, and went home"]
TOKENS_BxL = np.where(np.arange(16) < [[16], [9]], np.arange(32).reshape(2, 16) + 5, 0)
IN_GOLDEN = ("crammed-bert", "modern", "original-bert")
GOLDEN = Path(__file__).parent / "golden" / "exported.npz"


def small(row):
    """Returns a row's keys of `model` at a small size."""
    changes = ROWS[row].changes if row in ROWS else {}
    layers, embedding = changes.get("ffn_every", 2), 16 * ("embedding_width" in changes)
    return {**changes, **SHAPE, "layers": layers, "embedding_width": embedding}


def parameters(module, *arguments, scale=1.0):
    """Returns made-up parameters that are the same everywhere."""

    def made_up(x):
        return scale * ((np.arange(x.size) * 7919 % 1009) / 1009 - 0.4).reshape(x.shape)

    tree = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
    return jax.tree.map(lambda x: made_up(x).astype(np.float32), tree)


def workdir_of(folder, changes, cls=False, scale=1.0):
    """Returns a finished workdir with a model of another architecture."""
    workdir = unpacked("2fa099c", folder)
    values = config_module.read_recorded(workdir / "config.json", "")
    values["model"] |= changes
    values["data"]["cls"] = cls
    values["objective"] |= {"mask_share": 1.0, "random_share": 0.0}  # for late masks
    values["format"] = FORMAT
    model = config_module.from_dict(values).model
    tokens = np.zeros((1, 8), int)
    params = parameters(MaskedLM(model), tokens, tokens[:, :1], scale=scale)
    weights.write(workdir / weights.WEIGHTS, params)
    files.write_json(workdir / "config.json", values)
    return workdir


def classifier_of(folder, changes, **fields):
    """Returns the folder of a classifier."""
    workdir = workdir_of(folder, changes)
    pretrained = cramjax.load(workdir)
    given = {"labels": LABELS, "columns": ("a",), "head_width": 32}
    given |= {"pooling": "cls", "max_length": 32, "empty_second": True, **fields}
    module = Classifier(
        pretrained.model,
        classes=len(given["labels"]) or 1,
        head_width=given["head_width"],
    )
    saved = SavedClassifier(
        model=pretrained.model,
        params=parameters(module, np.zeros((1, 8), int)),
        tokenizer=pretrained.tokenizer,
        **given,
    )
    facts = {"checkpoint": "runs/mine", "train_rows": 9, "dev_rows": 3, "saved": "50"}
    classifier.save(folder / "classifier", saved, facts)
    return folder / "classifier"


@pytest.mark.parametrize(
    ("row", "cls", "architecture"),
    [
        ("crammed-bert", False, "CramjaxForMaskedLM"),
        ("embedding-128", True, "CramjaxForMaskedLM"),
        ("late-masks", False, "CramjaxForMaskedLM"),
        ("modern", True, "ModernBertForMaskedLM"),
        ("modern-local", False, "ModernBertForMaskedLM"),
        ("original-bert", False, "BertForMaskedLM"),
    ],
)
def test_an_export_read_back_is_equal_to_the_bit(tmp_path, row, cls, architecture):
    workdir = workdir_of(tmp_path, ODD.get(row) or small(row), cls)
    to = tmp_path / "new" / "exported"
    assert export(workdir, to)[0] == architecture
    ours, theirs = cramjax.load(workdir), cramjax.load(to)
    assert theirs.first == ours.first == (CLS if cls else SEP)
    assert theirs.empty_second == ours.empty_second
    jax.tree.map(np.testing.assert_array_equal, theirs.params, ours.params)
    np.testing.assert_array_equal(theirs.encode(TEXTS), ours.encode(TEXTS))
    first = "<cls>" if cls else "<sep>"
    tokenizer = Tokenizer.from_file(str(to / "tokenizer.json"))
    assert tokenizer.encode("").tokens == [first, "<sep>"]
    pair = tokenizer.encode("a ship", "a king").tokens
    assert (pair[0], pair.count("<sep>"), pair[-1]) == (first, 3 - cls, "<sep>")
    facts = json.loads((to / "config.json").read_text())
    ids = [value for key, value in facts.items() if key.endswith("_token_id")]
    assert len(ids) == 5 and max(ids) < facts["vocab_size"] == 256
    card = (to / "README.md").read_text()
    assert len(card.splitlines()) <= 40
    assert ("trust_remote_code" in card) == (to / "modeling_cramjax.py").exists()
    assert not list(to.parent.glob("*.partial"))


def test_a_run_of_an_earlier_version_and_its_card(tmp_path):
    workdir = unpacked("2fa099c", tmp_path)
    entry = {"title": "CoLA", "metric": "matthews", "starts": {"ema": {"median": 45.2}}}
    files.write_json(workdir / "glue.json", {"tasks": {"cola": entry}})
    export(workdir, tmp_path / "exported", "ema")
    ours = cramjax.load(workdir, "ema").encode(TEXTS)
    theirs = cramjax.load(tmp_path / "exported").encode(TEXTS)
    np.testing.assert_array_equal(theirs, ours)
    card = (tmp_path / "exported" / "README.md").read_text()
    for text in (
        "**text**: embedded:books",
        "**licence of the text**: not stated",
        "5,120 tokens in 0.01 hours on cpu",
        "5.418 nats per masked token (ema)",
        "CoLA 45.2 (matthews)",
        "**track**: **open** (a learning rate of its own for each task)",
    ):
        assert text in card
    earliest = unpacked("dcf3c78", tmp_path)
    (earliest / "glue.json").unlink(missing_ok=True)
    export(earliest, tmp_path / "earliest")
    assert "**scores**: none" in (tmp_path / "earliest" / "README.md").read_text()


@pytest.mark.parametrize(
    ("row", "fields", "architecture"),
    [
        ("original-bert", {}, "BertForSequenceClassification"),
        ("original-bert", {"head_width": 16}, "CramjaxForSequenceClassification"),
        ("original-bert", {"pooling": "mean"}, "CramjaxForSequenceClassification"),
        ("modern", {"labels": ()}, "CramjaxForSequenceClassification"),
    ],
)
def test_a_classifier(tmp_path, row, fields, architecture):
    folder = classifier_of(tmp_path, small(row) | {"token_types": 2}, **fields)
    assert export(folder, tmp_path / "exported")[0] == architecture
    facts = json.loads((tmp_path / "exported" / "config.json").read_text())
    labels = (
        {"0": "value"} if "labels" in fields else dict(zip("012", LABELS, strict=True))
    )
    assert facts["id2label"] == labels
    assert (facts["problem_type"] == "regression") == ("labels" in fields)
    tokenizer = Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json"))
    one = tokenizer.encode("a")
    assert one.tokens == ["<cls>", "a", "<sep>", "<sep>"]
    assert one.type_ids == [0, 0, 0, 1]  # as `rows.second_segment` has it
    assert tokenizer.encode("a", "a").type_ids == [0, 0, 0, 1, 1]
    theirs = cramjax.load(tmp_path / "exported")
    assert not theirs.has_head
    ours = classifier.load(folder).params
    jax.tree.map(
        np.testing.assert_array_equal,
        theirs.params,
        {k: ours[k] for k in theirs.params},
    )


def test_what_cannot_be_exported_leaves_nothing(tmp_path, monkeypatch, capsys):
    workdir = unpacked("2fa099c", tmp_path)
    (tmp_path / "file").write_text("")
    three = classifier_of(
        tmp_path / "c", small("crammed-bert"), columns=("a", "b", "c")
    )
    before = sorted(tmp_path.rglob("*"))

    def fails(checkpoint, to, *flags_and_message):
        *flags, message = flags_and_message
        flags += [f"--checkpoint={checkpoint}", f"--to={tmp_path / to}"]
        assert main(["export", *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before

    fails(tmp_path, "new", "holds no finished model")
    fails(three, "new", "transformers takes 1 or 2 texts")
    fails(three, "new", "--weights=ema", "is a classifier and has no averages")
    fails(workdir, "2fa099c", "exists and is not empty: pass another folder")
    fails(workdir, "file", "exists and is not empty")
    fails(workdir, "file/new", "Not a directory")

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_bytes", full)
    fails(workdir, "new", "No space left on device")
    monkeypatch.undo()
    export(workdir, tmp_path / "exported")
    with pytest.raises(UserError, match="is not a workdir of .*: copy the folder"):
        export(tmp_path / "exported", tmp_path / "again")


HOSTILE = (
    *(
        "<",
        ">",
        "<mas",
        "mask>",
        "< mask >",
        "[MASK]",
        "##a",
        "##",
        "\u2581",
        "<|end|>",
    ),
    *("``", "''", "'", "e\u0301", "\u00e9", "\u0130", "\ufb01", "\uff21", "\u212b"),
    *(" ", "  ", "\t", "\n", "\r", "\x00", "\x7f", "\u00a0", "\u200b", "\u3000"),
    *("\u4e2d", "\U0001f600", "\u200d", "\u202e", "\u0600", "\ufeff", "\ufffd"),
    *("a", "The", "King", "sea", "1", "0.5", "-", "_", "a" * 120, "\u0308" * 30),
)


def hostile(count):
    """Returns strings that tokenizers stumble over; none spells a special token."""
    generator = np.random.default_rng(0)
    found = []
    while len(found) < count:
        parts = list(generator.choice(HOSTILE, generator.integers(1, 12)))
        codes = generator.integers(1, 0x2FFFF, generator.integers(0, 4))
        parts += [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
        text = "".join(generator.permutation(parts))
        if not any(token in text for token in SPECIAL_TOKENS):
            found.append(text)
    return found


# What transformers answers in a process that cannot import this project.
THEIRS = """
import json, sys
sys.modules["cramjax"] = None
from transformers import AutoTokenizer, pipeline
answers = []
for job in json.load(sys.stdin):
    code = {"trust_remote_code": True} if job["code"] else {}
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], **code)
    ids = tokenizer(job["strings"], add_special_tokens=False)["input_ids"]
    model = pipeline(job["task"], model=job["folder"], **code)
    answers.append({"ids": ids, "answers": [model(x, top_k=256) for x in job["texts"]]})
json.dump(answers, sys.stdout)
"""


def ask_theirs(*jobs):
    torch = pytest.importorskip("torch", reason="needs the extra interop")
    env = os.environ | {"PYTHONPATH": str(Path(torch.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", THEIRS],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_answers_as_ours(tmp_path):
    """Tokens of hostile strings, and both pipelines."""
    rows = ("crammed-bert", "modern", "original-bert")
    strings, masked = hostile(300), ["the <mask> of the sea", "a ship <mask>, and"]
    jobs, ours = [], []
    for row in rows:
        workdir = workdir_of(tmp_path / row, small(row), cls=row == "modern")
        export(workdir, tmp_path / f"{row}-exported")
        model = cramjax.load(workdir)
        jobs.append({"task": "fill-mask", "texts": masked})
        ours.append((model, [model.fill_mask(text, 256)[0] for text in masked]))
    pairs = [("a ship", "the king"), ("it was good", "she said it was not, and went")]
    for row, texts, fields in (
        ("original-bert", pairs, {"columns": ("a", "b")}),
        ("crammed-bert", [(text,) for text in TEXTS], {"pooling": "mean"}),
        ("modern", [(text,) for text in TEXTS], {"labels": (), "empty_second": False}),
    ):
        name, types = f"{row}-classifier", {"token_types": 2 * (texts is pairs)}
        folder = classifier_of(tmp_path / name, small(row) | types, **fields)
        export(folder, tmp_path / f"{name}-exported")
        model = cramjax.load_classifier(folder)
        rows += (name,)
        names = ("text", "text_pair")
        given = [dict(zip(names, text, strict=False)) for text in texts]
        jobs.append({"task": "text-classification", "texts": given})
        ours.append((model, model.predict(texts)))
    for row, job in zip(rows, jobs, strict=True):
        folder = tmp_path / f"{row}-exported"
        job |= {"folder": str(folder), "strings": strings}
        job["code"] = (folder / "modeling_cramjax.py").exists()
    for (model, expected), job, theirs in zip(
        ours, jobs, ask_theirs(*jobs), strict=True
    ):
        for text, ids in zip(strings, theirs["ids"], strict=True):
            assert ids == model.tokenizer.encode(text, add_special_tokens=False).ids, (
                text
            )
        for answer, found in zip(expected, theirs["answers"], strict=True):
            if job["task"] == "fill-mask":
                words = [x for x in found if x["token"] >= len(SPECIAL_TOKENS)]
                total = sum(x["score"] for x in words)
                names = [x["token_str"].strip() for x in words[:5]]
                assert names == [word for word, _ in answer[:5]]
                probs = [x["score"] / total for x in words]
                np.testing.assert_allclose(probs, [p for _, p in answer], atol=1e-4)
            elif model.labels:
                assert found[0]["label"] == answer[0]
                assert found[0]["score"] == pytest.approx(answer[1], abs=1e-4)
            else:
                assert found[0]["score"] == pytest.approx(answer, abs=1e-4)


def checksum(folder):
    """Returns a number that is another one if what transformers reads is."""
    total = 0
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        total = zlib.crc32(tensor.tobytes(), zlib.crc32(name.encode(), total))
    facts = json.loads((folder / "config.json").read_text())
    del facts["cramjax"]  # has the version of the code
    total = zlib.crc32(json.dumps(facts, sort_keys=True).encode(), total)
    for path in folder.glob("*.py"):
        total = zlib.crc32(path.read_bytes(), total)
    return total


@pytest.mark.parametrize("row", IN_GOLDEN)
def test_the_same_files_as_when_transformers_computed_them(tmp_path, row):
    """And the same logits as then. See golden/README.md if this fails."""
    workdir = workdir_of(tmp_path, small(row))
    export(workdir, tmp_path / "exported")
    with np.load(GOLDEN) as file:
        assert checksum(tmp_path / "exported") == int(file[f"{row}/checksum"])
        expected_BxLxV = file[f"{row}/logits"]
    model = cramjax.load(workdir)
    places_BxL = np.tile(np.arange(TOKENS_BxL.shape[1]), (len(TOKENS_BxL), 1))
    ours_BxLxV = likelihood.logits(model.model, model.params, TOKENS_BxL, places_BxL)
    valid_BxL = TOKENS_BxL != PAD
    np.testing.assert_allclose(
        np.asarray(ours_BxLxV)[valid_BxL][:, ::8], expected_BxLxV[valid_BxL], atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_committed_logits(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra interop")
    transformers = pytest.importorskip("transformers")
    tokens = torch.tensor(TOKENS_BxL)
    found = {}
    for row in IN_GOLDEN:
        folder = tmp_path / f"{row}-exported"
        export(workdir_of(tmp_path / row, small(row)), folder)
        model = transformers.AutoModelForMaskedLM.from_pretrained(
            folder, trust_remote_code=True
        ).eval()
        with torch.inference_mode():
            logits = model(tokens, attention_mask=(tokens != PAD).long()).logits
        found[f"{row}/logits"] = logits.numpy()[..., ::8]
        found[f"{row}/checksum"] = np.array(checksum(folder))
    if not GOLDEN.exists():
        np.savez_compressed(GOLDEN, **found)
        pytest.fail(f"{GOLDEN} is new: commit it")
    with np.load(GOLDEN) as file:
        for name, array in found.items():
            np.testing.assert_allclose(array, file[name], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_architecture_has_the_same_logits(tmp_path):
    pytest.importorskip("torch", reason="needs the extra interop")
    seen = []
    for row in (*ROWS, *ODD):
        changes = ODD.get(row) or small(row)
        if changes not in seen:
            seen.append(changes)
            # Small parameters: otherwise every token attends to one other.
            workdir = workdir_of(tmp_path / row, changes, scale=0.2)
            _, difference = export(workdir, tmp_path / f"{row}-to")
            assert difference < 1e-4, row

"""Readers and the table of tasks."""

import dataclasses
import json
import re

import numpy as np
import pytest

from cramjax import config
from cramjax.errors import UserError
from cramjax.glue import data, tasks

GLUE = config.load("configs/default.py").glue


def having(**changes):
    return dataclasses.replace(GLUE, **changes)


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def task_files(folder, name, train, dev=None):
    """Writes train and dev of a task (one dev set), and returns its rows."""
    task = tasks.TASKS[name]
    write(folder, task.train.files[0], train)
    write(folder, task.dev[0].split.files[0], train if dev is None else dev)
    glue = having(data_dir=str(folder), superglue_dir=str(folder))
    return data.load(task, glue)


COLA = 'gj04\t1\t\tHe said "so.\ngj04\t0\t*\tHim ran.\n'


def test_cola_has_no_header_and_quotes_are_characters(tmp_path):
    rows = task_files(tmp_path, "cola", COLA).train
    assert rows.texts == [('He said "so.',), ("Him ran.",)]
    assert (rows.labels_N.tolist(), rows.labels_N.dtype) == ([1, 0], np.int32)


def test_byte_order_mark_and_line_ends(tmp_path):
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = task_files(tmp_path, "mrpc", head + "1\t7\t8\tA\u2028b.\tC d.\r\n").train
    assert rows.texts == [("A\u2028b.", "C d.")]
    assert rows.labels_N.tolist() == [1]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "\n  \n\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end):
    rows = task_files(tmp_path, "cola", COLA.removesuffix("\n") + end).train
    assert rows.texts == [('He said "so.',), ("Him ran.",)]


def test_stsb_has_numbers(tmp_path):
    head = "index\tgenre\tfile\tyear\told\ts1\ts2"
    text = f"{head}\tsentence1\tsentence2\tscore\n" + "0\t" * 7 + "A.\tB.\t3.800\n"
    loaded = task_files(tmp_path, "stsb", text)
    assert tasks.TASKS["stsb"].regression
    assert loaded.train.texts == [("A.", "B.")]
    assert loaded.train.labels_N.tolist() == [np.float32(3.8)]
    with pytest.raises(UserError, match=r"train\.tsv:2 has the label 'x', not a num"):
        task_files(tmp_path, "stsb", text.replace("3.800", "x"))


def test_official_mnli_has_more_columns_and_a_second_dev_set(tmp_path):
    head = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"
    row = "0\t1\tA.\tB.\tneutral\tcontradiction\n"
    loaded = task_files(tmp_path, "mnli", head + row)
    assert loaded.train.labels_N.tolist() == [2]
    assert list(loaded.dev) == ["mnli"]
    missing = "MNLI-mm is not scored: MNLI/dev_mismatched.tsv is missing"
    assert loaded.notes == (missing,)
    write(tmp_path, "MNLI/dev_mismatched.tsv", head + 2 * row)
    write(tmp_path, "MNLI/test_matched.tsv", "index\tsentence1\tsentence2\n0\tA\tB\n")
    loaded = task_files(tmp_path, "mnli", head + row)
    assert {name: len(rows) for name, rows in loaded.dev.items()} == {
        "mnli": 1,
        "mnli_mm": 2,
    }
    assert loaded.test["MNLI-m"].texts == [("A", "B")]
    assert loaded.notes == ()


def test_qqp_leaves_out_rows_that_a_line_break_cut(tmp_path):
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    row = "1\t2\t3\tA?\tB?\t1\n"
    cut = "1\t2\t3\tA\n?\tB?\t1\n"
    loaded = task_files(tmp_path, "qqp", head + row + cut + row, head + row)
    assert len(loaded.train) == 2
    assert "QQP: 2 rows of" in loaded.notes[0]
    with pytest.raises(UserError, match=r"train\.tsv:2 has 7 columns, not 6"):
        task_files(tmp_path, "qqp", head + row.replace("A?", "A\t?"))


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


MULTIRC = {
    "passage": {
        "text": "P.",
        "questions": [
            {"question": "Q1?", "answers": [{"text": "a", "label": 1}]},
            {
                "question": "Q2?",
                "answers": [{"text": "b", "label": 0}, {"text": "c", "label": 1}],
            },
        ],
    }
}


@pytest.mark.parametrize(
    ("name", "record", "texts", "labels"),
    [
        ("multirc", MULTIRC, ("Q1?", "P.", "a"), [1, 0, 1]),
        (
            "copa",
            {
                "premise": "P.",
                "choice1": "A.",
                "choice2": "B.",
                "question": "cause",
                "label": 1,
            },
            ("cause", "P.", "A.", "B."),
            [1],
        ),
        (
            "wsc",
            {
                "text": "Mark told Pete.",
                "target": {
                    "span1_index": 0,
                    "span1_text": "Mark",
                    "span2_index": 2,
                    "span2_text": "Pete",
                },
                "label": False,
            },
            ("Mark told Pete.", "0", "2", "Mark", "Pete"),
            [0],
        ),
        (
            "wic",
            {"word": "w", "sentence1": "A w.", "sentence2": "B w.", "label": True},
            ("w", "A w.", "B w."),
            [1],
        ),
        (
            "cb",
            {"premise": "A.", "hypothesis": "B.", "label": "neutral"},
            ("A.", "B."),
            [2],
        ),
    ],
)
def test_superglue_rows(tmp_path, name, record, texts, labels):
    rows = task_files(tmp_path, name, jsonl(record)).train
    assert rows.texts[0] == texts
    assert rows.labels_N.tolist() == labels


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cola", "gj04\t1\t\tOne.\ngj04\t1\n", r"train\.tsv:2 has 2 columns, not 4"),
        ("cola", "gj04\t1\t\tOne.\tTwo.\n", r"train\.tsv:1 has 5 columns, not 4"),
        ("cola", "gj04\tx\t\tOne.\n", r"train\.tsv:1 has the label 'x', not one of"),
        ("cola", "gj04\t1\t\tOne.\n\ngj04\t1\t\tTwo.\n", r":2 has 1 columns, not 4"),
        ("cola", "", r"train\.tsv has no rows"),
        ("cola", "\n \n\r\n", r"train\.tsv has no rows"),
        ("rte", "", r"train\.tsv has no rows"),
        ("rte", "index\tsentence1\n0\tx\n", "no column 'sentence2'; it has"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n", r"train\.tsv has no rows"),
        ("cb", "\n", r"train\.jsonl has no rows"),
        ("cb", '{"premise": 1}\n{"a"\n', r"train\.jsonl:1 has no 'hypothesis'"),
        ("cb", '\n{"a"\n', r"train\.jsonl:2 is not JSON: Expecting"),
        ("cb", "[" * 200_000, r"train\.jsonl:1 is not JSON: "),
        ("cb", "[1]\n", r"train\.jsonl:1 has no 'premise'"),
        ("wsc", '{"text": "a", "target": 3}\n', r":1 has no 'target.span1_index'"),
        ("cb", '{"premise": null}\n', r":1 has no text or number in 'premise'"),
        ("multirc", '{"passage": {}}\n', r"train\.jsonl:1 does not have 'questions'"),
    ],
)
def test_broken_files_are_named_with_the_row(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        task_files(tmp_path, name, content)
    assert "\n" not in str(error.value)


def test_what_is_not_utf8_is_named_with_the_row(tmp_path):
    write(tmp_path, "CoLA/dev.tsv", COLA)
    (tmp_path / "CoLA" / "train.tsv").write_bytes(COLA.encode() + b"a\t1\t\t\xff.\n")
    with pytest.raises(UserError, match=r"train\.tsv:3 is not UTF-8"):
        data.load(tasks.TASKS["cola"], having(data_dir=str(tmp_path)))


def test_missing_files_and_tasks(tmp_path):
    glue = having(data_dir=str(tmp_path), superglue_dir="nowhere")
    with pytest.raises(UserError, match=r"RTE/train\.tsv is missing; .*\.data_dir is"):
        data.load(tasks.TASKS["rte"], glue)
    with pytest.raises(UserError, match=r"superglue_dir is 'nowhere': .*leave 'cb' ou"):
        data.load(tasks.TASKS["cb"], glue)
    write(tmp_path, "CoLA/train.tsv", COLA)
    with pytest.raises(UserError, match=r"CoLA/dev\.tsv is missing; .*data_dir is"):
        data.load(tasks.TASKS["cola"], glue)
    with pytest.raises(UserError, match=r"config\.glue\.tasks: 'colla' is not one of"):
        tasks.get(having(tasks=("colla",)))
    with pytest.raises(UserError, match="'axb' is scored by 'superglue_rte'"):
        tasks.get(having(tasks=("axb",)))


def test_own_task(tmp_path):
    text = "id\ttitle\ttext\tkind\n1\tA\tB\tlong\n2\tC\tD\tand short\n"
    write(tmp_path, "train.tsv", text)
    record = {"title": "E", "text": "F", "kind": "long"}
    write(tmp_path, "val.jsonl", jsonl(record))
    glue = having(
        tasks=("own",),
        own_dir=str(tmp_path),
        own_texts=("title", "text"),
        own_label="kind",
        own_metric="f1",
    )
    (task,) = tasks.get(glue)
    loaded = data.load(task, glue)
    assert loaded.labels == ("and short", "long")
    assert loaded.train.labels_N.tolist() == [1, 0]
    assert loaded.dev["own"].texts == [("E", "F")]
    write(tmp_path, "val.jsonl", jsonl(record | {"kind": "new"}))
    message = r"val\.jsonl:1 has the label 'new', not one of 'and short', 'long'; name "
    with pytest.raises(UserError, match=message + r".*--config\.glue\.own_label$"):
        data.load(task, glue)
    write(tmp_path, "train.tsv", text + "3\tG\tH\tthird\n")
    with pytest.raises(
        UserError, match="own_metric is 'f1': .* 3 labels in 'kind' .*own_label"
    ):
        data.load(task, glue)


def test_own_labels_are_sorted(tmp_path):
    text = "text\tlabel\n" + "".join(f"a\t{label}\n" for label in "gfedcba")
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path, name, text)
    glue = having(tasks=("own",), own_dir=str(tmp_path))
    (task,) = tasks.get(glue)
    assert data.load(task, glue).labels == tuple("abcdefg")
    write(tmp_path, "train.tsv", text + "a\t \n")
    with pytest.raises(
        UserError, match=r"train\.tsv:9 has the label ' ', not one of .*own_l"
    ):
        data.load(task, glue)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"own_dir": ""},
            "train.tsv or train.jsonl is missing; config.glue.own_dir is ''",
        ),
        (
            {"own_texts": ("a",)},
            "has no column 'a'; it has ['text', 'label']; name ano",
        ),
        ({"own_texts": ("a",)}, "ther column in --config.glue.own_texts"),
        ({"own_label": "b"}, "has no column 'b'; it has ['text', 'label']; name ano"),
        ({"own_label": "b"}, "ther column in --config.glue.own_label"),
        (
            {"own_metric": "pearson"},
            "train.tsv:2 has the label 'k0', not a number; nam",
        ),
        (
            {"own_metric": "pearson"},
            "--config.glue.own_label, or another --config.glue",
        ),
        # Of many labels some are named.
        (
            {},
            "dev.jsonl:1 has the label 'x', not one of 'k0', 'k1', 'k10', 'k11', 'k2'",
        ),
        ({}, "'k7', ...; name another column in --config.glue.own_label"),
    ],
)
def test_mistakes_in_an_own_task_name_the_key(tmp_path, changes, message):
    rows = "".join(f"a\tk{i}\n" for i in range(12))
    write(tmp_path, "train.tsv", f"text\tlabel\n{rows}")
    write(tmp_path, "dev.jsonl", jsonl({"text": "a", "label": "x"}))
    glue = having(tasks=("own",), **{"own_dir": str(tmp_path)} | changes)
    (task,) = tasks.get(glue)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        data.load(task, glue)
    assert "\n" not in str(error.value)


def test_a_field_that_an_own_task_lacks_names_the_key(tmp_path):
    for name in ("train.jsonl", "dev.jsonl"):
        write(tmp_path, name, jsonl({"text": "a", "label": None}))
    for changes, message in (
        ({"own_texts": ("b",)}, r"train\.jsonl:1 has no 'b'; .*\.own_texts$"),
        ({}, r"train\.jsonl:1 has no text or number in 'label'; .*\.own_label$"),
    ):
        glue = having(tasks=("own",), own_dir=str(tmp_path), **changes)
        (task,) = tasks.get(glue)
        with pytest.raises(UserError, match=message):
            data.load(task, glue)


def test_own_regression(tmp_path):
    text = "text\tlabel\nA\t0.5\nB\t-2\n"
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path, name, text)
    glue = having(tasks=("own",), own_dir=str(tmp_path), own_metric="spearman")
    (task,) = tasks.get(glue)
    assert data.load(task, glue).train.labels_N.tolist() == [0.5, -2.0]


def test_embedded_tasks_and_subsample():
    ten, whole = (
        data.load(tasks.TASKS[name], GLUE) for name in ("intents10", "intents")
    )
    assert len(ten.train) == ten.all_train_rows == 2088
    few = data.subsample(ten, 0, seed=0)
    assert list(np.bincount(few.train.labels_N)) == [10] * 7
    assert few.all_train_rows == 2088
    assert len(data.subsample(ten, 50, seed=0).train) == 50
    capped, again = (data.subsample(whole, 300, seed=0).train for _ in range(2))
    assert len(set(capped.texts)) > 290
    assert capped.texts == again.texts

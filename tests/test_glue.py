import dataclasses

import numpy as np
import pytest

from cramjax.errors import UserError
from cramjax.glue import data, evaluate, metrics, tasks
from cramjax.glue.data import Rows, template
from cramjax.glue.finetune import _batches, _trim, finetune


# 3 special tokens; ids below 100 are A's, above are B's.
@pytest.mark.parametrize(
    ("len_a", "len_b", "max_length", "kept_a", "kept_b"),
    [
        (3, 2, 128, 3, 2),
        (3, 0, 128, 3, 0),  # <cls> A <sep> <sep>
        (9, 2, 10, 5, 2),  # room for 7: the longer one gives way
        (2, 9, 10, 2, 5),
        (9, 9, 10, 4, 3),  # A keeps the odd token
        (9, 9, 11, 4, 4),
        (4, 9, 10, 4, 3),
        (3, 9, 10, 3, 4),
        (50, 0, 10, 7, 0),
    ],
)
def test_template(len_a, len_b, max_length, kept_a, kept_b):
    a, b = list(range(10, 10 + len_a)), list(range(100, 100 + len_b))
    expected = [4, *a[:kept_a], 5, *b[:kept_b], 5]
    assert template(a, b, max_length) == expected


def test_template_is_longest_first_one_token_at_a_time():
    for len_a in range(12):
        for len_b in range(12):
            a, b = [7] * len_a, [8] * len_b
            while len(a) + len(b) > 9:
                (a if len(a) > len(b) else b).pop()
            assert template([7] * len_a, [8] * len_b, 12) == [4, *a, 5, *b, 5]


def test_encode_pads_with_zero(corpus):
    rows = Rows([("a small house",), ("a",)], np.array([0, 1]))
    encoded = data.encode(rows, corpus.tokenizer, 32)
    assert encoded.tokens_NxL[0].min() > 0
    assert encoded.tokens_NxL[1][-1] == 0
    assert list(encoded.tokens_NxL[1][:4].nonzero()[0]) == [0, 1, 2, 3]


@pytest.fixture
def cola(tmp_path):
    (tmp_path / "CoLA").mkdir()
    lines = ['gj04\t1\t\tHe said "so.', "gj04\t0\t*\tHim ran."]
    for split in ("train", "dev"):
        (tmp_path / "CoLA" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_cola_has_no_header_and_quotes_are_characters(cola):
    rows = data.read(tasks.TASKS["cola"], "train", str(cola))
    assert rows.texts == [('He said "so.',), ("Him ran.",)]
    assert list(rows.labels_N) == [1, 0]


def test_mrpc_has_a_byte_order_mark(tmp_path):
    (tmp_path / "MRPC").mkdir()
    text = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA b.\tC d.\n"
    for split in ("train", "dev"):
        (tmp_path / "MRPC" / f"{split}.tsv").write_text(text, encoding="utf-8")
    rows = data.read(tasks.TASKS["mrpc"], "dev", str(tmp_path))
    assert (rows.texts, list(rows.labels_N)) == ([("A b.", "C d.")], [1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gj04\t1\t\tOne.\ngj04\t1\n", r"train\.tsv:2 has 2 columns, needed are 4"),
        ("gj04\tx\t\tOne.\n", r"train\.tsv:1 has the label 'x'"),
        ("", r"train\.tsv has no rows"),
    ],
)
def test_broken_files_are_named_with_the_row(cola, content, message):
    (cola / "CoLA" / "train.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        data.read(tasks.TASKS["cola"], "train", str(cola))


def test_missing_files_columns_and_tasks(tmp_path):
    with pytest.raises(UserError, match=r"config\.glue\.data_dir is .*RTE/train\.tsv"):
        data.read(tasks.TASKS["rte"], "train", str(tmp_path))
    (tmp_path / "RTE").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "RTE" / f"{split}.tsv").write_text("index\tsentence1\n0\tx\n")
    with pytest.raises(UserError, match="no column 'sentence2'"):
        data.read(tasks.TASKS["rte"], "dev", str(tmp_path))
    with pytest.raises(UserError, match=r"config\.glue\.tasks: 'colla'"):
        tasks.get(["colla"])


def test_embedded_tasks_and_subsample():
    task = tasks.TASKS["intents10"]
    rows = data.read(task, "train", "")
    assert len(rows.labels_N) == 2088
    few = data.subsample(rows, task, 0, seed=0)
    assert list(np.bincount(few.labels_N)) == [10] * 7
    assert len(data.subsample(rows, task, 50, seed=0).labels_N) == 50
    capped = data.subsample(rows, tasks.TASKS["intents"], 300, seed=0)
    assert len(set(capped.texts)) > 290
    again = data.subsample(rows, tasks.TASKS["intents"], 300, seed=0)
    assert capped.texts == again.texts


def test_metrics_by_hand():
    labels = np.array([1, 1, 1, 0])
    predictions = np.array([1, 1, 0, 0])
    assert metrics.score("accuracy", labels, predictions) == 75
    assert metrics.score("f1", labels, predictions) == pytest.approx(80)
    assert metrics.score("matthews", labels, predictions) == pytest.approx(57.735, 1e-4)
    constant = np.zeros(4, int)
    assert metrics.score("matthews", labels, constant) == 0
    assert metrics.score("f1", labels, constant) == 0


def test_every_epoch_sees_every_row_once_but_the_last_partial_batch(tiny):
    glue = dataclasses.replace(tiny.glue, batch_size=4, epochs=2, trials=2)
    batches = list(_batches(10, glue, seed=0))
    assert [b.shape for b in batches] == [(2, 4)] * 4
    for trial in range(2):
        for epoch in range(2):
            seen = np.concatenate(
                [b[trial] for b in batches[2 * epoch : 2 * epoch + 2]]
            )
            assert len(set(seen)) == 8


def test_trim():
    tokens = np.zeros((2, 40), np.uint16)
    tokens[0, :33] = 1
    assert _trim(tokens, 128).shape == (2, 64)
    assert _trim(tokens[:, :20], 128).shape == (2, 32)
    assert _trim(tokens, 40).shape == (2, 40)  # learned positions may end there


def test_finetuning_learns_a_separable_task(tiny):
    """The class is told by three tokens; all trials must find it."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 200, (64, 12)).astype(np.uint16)
    labels = generator.integers(0, 2, 64).astype(np.int32)
    tokens[:, 0] = 4
    tokens[:, 3:6] = (8 + labels)[:, None]
    rows = data.Encoded(tokens, labels)
    glue = dataclasses.replace(tiny.glue, epochs=20, dropout=0.0, trials=2)
    predictions = finetune(
        tiny.model, glue, rows, rows, 2, pretrained=None, learning_rate=1e-2, seed=0
    )
    assert predictions.shape == (2, 64)
    assert (predictions == labels).all()


def test_every_start_gets_its_weights(tiny, corpus, tmp_path, monkeypatch):
    given = []

    def note(*args, pretrained, **_):
        dev = args[3]
        given.append(pretrained)
        return np.zeros((2, len(dev)), np.int32)

    monkeypatch.setattr(evaluate, "finetune", note)
    starts = ("pretrained", "random", "ema", "lawa")
    config = dataclasses.replace(
        tiny, glue=dataclasses.replace(tiny.glue, starts=starts)
    )
    weights = {"pretrained": 1, "ema": 2, "lawa": 3}
    results = evaluate.evaluate(config, weights, corpus.tokenizer, tmp_path)
    assert given == [1, None, 2, 3]
    assert list(results["intents10"]["starts"]) == list(starts)


def test_too_few_rows_for_a_batch(tiny):
    rows = data.Encoded(np.ones((3, 8), np.uint16), np.zeros(3, np.int32))
    with pytest.raises(UserError, match=r"config\.glue\.batch_size is 16"):
        finetune(
            tiny.model,
            tiny.glue,
            rows,
            rows,
            2,
            pretrained=None,
            learning_rate=1e-3,
            seed=0,
        )

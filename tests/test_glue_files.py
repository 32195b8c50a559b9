"""Readers on the real files, where they are; these are never part of the package."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cramjax import config
from cramjax.errors import UserError
from cramjax.glue import data, tasks

FULL = Path(__file__).parents[2] / "shared" / "data"
GLUE = config.load("configs/default.py").glue

# Rows of train and dev, of the first class in train, and how the first row begins.
FILES = {
    "cola": (8551, [1043], 2528, ["Our friends won't buy"]),
    "sst2": (67349, [872], 29780, ["hide new secretions"]),
    "mrpc": (3668, [408], 1194, ["Amrozi accused", "Referring to him"]),
    "qqp": (28868, [4000], 18223, ["How did Muhammad", "How and when"]),
    "mnli": (19636, [9815], 6540, ["Our hearts are", "We are especially"]),
    "qnli": (19475, [5463], 9768, ["What sector has", "The IT sector"]),
    "rte": (2490, [277], 1249, ["No Weapons of", "Weapons of Mass"]),
    "wnli": (635, [71], 323, ["I stuck a pin", "The carrot"]),
    "cb": (250, [56], 115, ["It was a complex", "the language"]),
    "copa": (400, [100], 195, ["cause", "My body", "The sun", "The grass"]),
    "multirc": (27243, [4848], 15218, ["What did the", "While this", "Children"]),
    "superglue_rte": (2490, [277, 1104, 356], 1249, ["No Weapons", "Weapons"]),
    "wic": (5428, [638], 2714, ["place", "Do you want", "A political"]),
    "wsc": (554, [104], 295, ["Mark told", "0", "13", "Mark", "He"]),
}


def full(task):
    folder = FULL / f"{task.source}_data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    glue = dataclasses.replace(GLUE, data_dir=str(folder), superglue_dir=str(folder))
    return data.load(task, glue)


@pytest.mark.parametrize("name", FILES)
def test_real_files(name):
    loaded = full(tasks.TASKS[name])
    train, dev, first_class, beginnings = FILES[name]
    assert len(loaded.train) == train
    assert [len(rows) for rows in loaded.dev.values()] == dev
    assert np.bincount(loaded.train.labels_N)[0] == first_class
    classes = range(len(loaded.labels))
    assert set(loaded.train.labels_N) == set(classes)
    for rows in loaded.dev.values():
        assert set(rows.labels_N) <= set(classes)
    for text, beginning in zip(loaded.train.texts[0], beginnings, strict=True):
        assert text.startswith(beginning)


def test_real_stsb():
    loaded = full(tasks.TASKS["stsb"])
    assert (len(loaded.train), len(loaded.dev["stsb"])) == (5749, 1500)
    assert loaded.train.texts[0] == (
        "A plane is taking off.",
        "An air plane is taking off.",
    )
    scores = loaded.train.labels_N
    assert (scores[0], scores.min(), scores.max()) == (5.0, 0.0, 5.0)


def test_real_boolq_has_no_training_set():
    with pytest.raises(UserError, match=r"BoolQ/train\.jsonl is missing"):
        full(tasks.TASKS["boolq"])

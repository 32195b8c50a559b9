"""Finished workdirs of earlier versions; see tests/golden/README.md.

They are read forever: if one of these tests fails after a change, mend the reading.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import unpacked

import cramjax
from cramjax import config as config_module
from cramjax import score
from cramjax.checkpoints import convert
from cramjax.config import ABSENT, FORMAT, flatten, to_dict
from cramjax.errors import UserError
from cramjax.run import check_workdir, run

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ["dcf3c78", "2fa099c"]
TEXTS = ["the king of the sea", "a ship", "she said that it was good, and went home"]


@pytest.fixture(params=VERSIONS)
def earlier(request, tmp_path):
    return unpacked(request.param, tmp_path)


def test_it_loads_with_its_vectors(earlier):
    """The vectors were computed with the version that trained the model."""
    with np.load(GOLDEN / "earlier.npz") as file:
        expected = file[earlier.name]
    model = cramjax.load(earlier)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-5)
    assert len(model.fill_mask("the <mask> of the sea")[0]) == 5


def test_it_is_scored_with_the_same_config(earlier, capsys):
    values = config_module.read_recorded(earlier / "config.json", "")
    config = config_module.from_dict(values)
    glue = dataclasses.replace(
        config.glue,
        tasks=("intents10",),
        starts=("pretrained", *config.averaging.names),
        trials=1,
        epochs=1,
        learning_rates=(1e-3,),
        head_width=8,
        max_train_rows=16,
    )
    config = dataclasses.replace(config, glue=glue)
    run(config, earlier)
    lines = capsys.readouterr().out
    if (earlier / "report.md").exists():
        assert "Intents" in (earlier / "report.md").read_text()
    else:
        assert "no new report.md: pretrain.json is of an earlier version" in lines
    scores = json.loads((earlier / "glue.json").read_text())["tasks"]["intents10"]
    assert set(scores["starts"]) == set(glue.starts)
    assert json.loads((earlier / "config.json").read_text())["format"] == FORMAT


def test_its_unfinished_runs_are_refused_in_one_line(earlier):
    values = config_module.read_recorded(earlier / "config.json", "")
    config = config_module.from_dict(values)
    (earlier / "pretrain.json").unlink()
    with pytest.raises(UserError, match="unfinished run of an earlier version") as e:
        run(config, earlier)
    assert "\n" not in str(e.value)


def test_every_key_was_there_from_the_beginning_or_has_a_neutral_value(tmp_path):
    config = config_module.load("configs/small.py")
    first = json.loads((unpacked("dcf3c78", tmp_path) / "config.json").read_text())
    now = set(flatten(to_dict(config)))
    assert now - set(flatten(first)) == set(ABSENT)


def test_a_record_names_its_format(tiny, tmp_path):
    path = tmp_path / "config.json"
    config_module.record(path, tiny)
    values = config_module.read_recorded(path, "")
    assert values["format"] == FORMAT
    assert config_module.from_dict(values) == tiny
    for later in (FORMAT + 1, "x"):
        path.write_text(json.dumps(values | {"format": later}))
        with pytest.raises(UserError, match=f"has the format {later!r}, .* bring it"):
            config_module.read_recorded(path, "bring it back")


def test_an_added_key_counts_as_its_neutral_value(tiny, tmp_path):
    config_module.record(tmp_path / "config.json", tiny)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["objective"]["separate_documents"], values["curriculum"]
    del values["checksum"]  # which is newer, too
    (tmp_path / "config.json").write_text(json.dumps(values))
    check_workdir(tmp_path, tiny)
    objective = dataclasses.replace(tiny.objective, separate_documents=True)
    with pytest.raises(UserError, match=r"separate_documents=False, not True"):
        check_workdir(tmp_path, dataclasses.replace(tiny, objective=objective))


def test_a_run_that_attended_with_cudnn_is_used_on_a_cpu(tmp_path):
    """Trained on a GPU in 16 bits, and then loaded, converted and scored elsewhere."""
    workdir = unpacked("2fa099c", tmp_path)
    before = cramjax.load(workdir).encode(TEXTS)
    values = json.loads((workdir / "config.json").read_text())
    values["platform"] = "gpu"
    values["model"] |= {"attention": "cudnn", "dtype": "bfloat16"}
    (workdir / "config.json").write_text(json.dumps(values))
    model = cramjax.load(workdir)
    np.testing.assert_array_equal(model.encode(TEXTS), before)
    assert model.config.model.attention == "cudnn"
    trained_as = model.config.model
    tensors = convert.write("crammedBERT", model.params, trained_as)
    again = convert.read("crammedBERT", tensors, trained_as)
    jax.tree.map(np.testing.assert_array_equal, again, model.params)
    run(model.config, workdir)
    assert (workdir / "report.md").exists()
    flags = ["--config=configs/small.py", "--tasks=intents10"]
    for key, value in (
        ("starts", "('pretrained',)"),
        ("learning_rates", "(1e-3,)"),
        ("trials", 1),
        ("epochs", 1),
        ("max_length", 32),
        ("head_width", 8),
        ("max_train_rows", 16),
    ):
        flags.append(f"--config.glue.{key}={value}")
    page = score.score([*flags, f"--checkpoint={workdir}"])
    assert page.count("| pretrained | 0.001 |") == 1
    for folder in (workdir, workdir / "evaluation"):
        recorded = json.loads((folder / "config.json").read_text())["model"]
        assert (recorded["attention"], recorded["dtype"]) == ("cudnn", "bfloat16")

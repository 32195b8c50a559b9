"""GLUE from TFDS: archives made up here, no network, no TensorFlow."""

import dataclasses
import socket
import subprocess
import sys
import time

import fake_glue
import numpy as np
import pytest

from cramjax import config
from cramjax.errors import UserError
from cramjax.glue import data, evaluate, tasks, tfds_source

DEFAULT = config.load("configs/default.py")
GLUE = DEFAULT.glue


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Nothing is prepared there; what would be downloaded is in downloads/manual."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("tfds")
    patch = pytest.MonkeyPatch()
    fake_glue.expect(fake_glue.write(folder / "downloads" / "manual"), patch)
    yield str(folder)
    patch.undo()


def load(name, tfds_dir):
    glue = dataclasses.replace(GLUE, data_dir="nowhere", tfds_dir=tfds_dir)
    return data.load(tasks.TASKS[name], glue)


def test_rows_are_in_the_order_of_the_file(tfds_dir):
    loaded = load("cola", tfds_dir)
    assert loaded.train.texts == [(f"S {i}.",) for i in range(40)]
    assert loaded.train.labels_N.tolist() == [0, 1] * 20
    assert loaded.dev["cola"].texts == [('D "q.',)]
    assert loaded.test["CoLA"].texts == [("T.",)]


def test_numbers(tfds_dir):
    loaded = load("stsb", tfds_dir)
    assert loaded.train.texts == [("A.", "B.")]
    assert loaded.train.labels_N.tolist() == [np.float32(3.8)]


def test_two_dev_sets(tfds_dir):
    loaded = load("mnli", tfds_dir)
    assert loaded.train.labels_N.tolist() == [2, 0, 1]
    assert loaded.train.texts[1] == ("A 1.", 'B "q.')
    found = {name: rows.labels_N.tolist() for name, rows in loaded.dev.items()}
    assert found == {"mnli": [1], "mnli_mm": [1, 2]}
    assert list(loaded.test) == ["MNLI-m", "MNLI-mm"]  # AX is another archive
    assert loaded.notes == ()


def test_mrpc_is_split_by_the_dev_ids(tfds_dir):
    loaded = load("mrpc", tfds_dir)
    assert (loaded.train.texts, loaded.train.labels_N.tolist()) == ([("A.", "B.")], [1])
    dev = loaded.dev["mrpc"]
    assert (dev.texts, dev.labels_N.tolist()) == ([("C.", "D.")], [0])
    assert loaded.test["MRPC"].texts == [("E.", "F.")]


def test_superglue_is_read_from_its_folder(tfds_dir):
    glue = dataclasses.replace(GLUE, superglue_dir="nowhere", tfds_dir=tfds_dir)
    with pytest.raises(UserError, match="superglue_dir is 'nowhere'"):
        data.load(tasks.TASKS["cb"], glue)


def test_what_cannot_be_prepared_is_one_line(tfds_dir, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("tensorflow_datasets.builder", fail)
    message = "QNLI is not scored: TFDS cannot prepare .*: ConnectionError: no network"
    with pytest.raises(UserError, match=message) as error:
        load("qnli", tfds_dir)
    assert "\n" not in str(error.value)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with fake_glue.serving(fake_glue.write(tmp_path / "served"), monkeypatch) as server:
        yield server


def test_what_is_downloaded_once_needs_no_network(server, tmp_path):
    assert len(load("cola", str(tmp_path / "tfds")).train) == 40
    server.shutdown()
    server.server_close()
    tfds_source._splits.cache_clear()
    assert len(load("cola", str(tmp_path / "tfds")).train) == 40


def test_without_a_network_it_ends_soon_in_one_line(
    server, tmp_path, monkeypatch, capfd, caplog
):
    server.shutdown()
    server.server_close()
    waited = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waited.append)
    message = (
        r"TFDS cannot prepare glue/cola: NewConnectionError: .*refused.*"
        r" \(/CoLA\.zip\); put the files into "
    )
    with pytest.raises(UserError, match=message) as error:
        load("cola", str(tmp_path / "tfds"))
    assert "\n" not in str(error.value)
    assert waited and sum(waited) < 2
    assert capfd.readouterr().err == ""
    assert not [r for r in caplog.records if r.name.startswith("urllib3")]


def having(folder, *names, **changes):
    changes = {"tfds_dir": str(folder / "tfds"), "batch_size": 1} | changes
    changes |= {"tasks": names or ("cola", "mrpc", "mnli")}
    return dataclasses.replace(DEFAULT, glue=dataclasses.replace(GLUE, **changes))


def names(found):
    return [task.name for task in found]


def test_looking_downloads_nothing(server, tmp_path, said):
    config = having(tmp_path)
    found = evaluate.check(config, tmp_path)
    assert names(found) == ["cola", "mrpc", "mnli"]
    assert not (tmp_path / "tfds" / "glue").exists() and said == []
    assert names(evaluate.fetch(config, found)) == ["cola", "mrpc", "mnli"]
    assert said == [
        f"{title}: from TFDS, {tmp_path / 'tfds'}" for title in ("CoLA", "MRPC", "MNLI")
    ]
    server.shutdown()
    server.server_close()
    assert names(evaluate.check(config, tmp_path)) == ["cola", "mrpc", "mnli"]


def test_what_cannot_be_downloaded_is_named_with_its_place(server, tmp_path, said):
    ids = tmp_path / "served" / "data_mrpc_dev_ids.tsv"
    ids = ids.rename(tmp_path / ids.name)
    (tmp_path / "served" / "CoLA.zip").write_bytes(b"other bytes")
    manual = tmp_path / "tfds" / "downloads" / "manual"
    found = evaluate.check(having(tmp_path), tmp_path)
    assert names(found) == ["cola", "mnli"]
    assert said[0].startswith("MRPC is not scored: TFDS cannot prepare glue/mrpc: ")
    assert "data_mrpc_dev_ids.tsv cannot be downloaded: HTTPError: 404 " in said[0]
    assert f"; put the files into {manual}, or the benchmark's own" in said[0]
    assert names(evaluate.fetch(having(tmp_path), found)) == ["mnli"]
    assert said[2].startswith("CoLA is not scored: TFDS cannot prepare glue/cola: ")
    assert "wrong checksum" in said[2] and str(manual) in said[2]
    with pytest.raises(UserError, match="MRPC is not scored"):
        evaluate.check(having(tmp_path, "mrpc"), tmp_path)
    manual.mkdir(parents=True)
    ids.rename(manual / ids.name)
    assert names(evaluate.check(having(tmp_path, "mrpc"), tmp_path)) == ["mrpc"]


def test_a_host_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    """It takes connections and says nothing."""
    monkeypatch.setattr(tfds_source, "ANSWER_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.MonkeyPatch.context() as patch,
    ):
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        fake_glue.expect(fake_glue.write(tmp_path / "files"), patch, address)
        begun = time.monotonic()
        with pytest.raises(UserError, match="timed out") as error:
            evaluate.check(having(tmp_path), tmp_path)
        assert time.monotonic() - begun < 10
    assert str(error.value).startswith("CoLA, MRPC, MNLI are not scored: TFDS ")


def test_the_folder_is_tfds_own_unless_one_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    by_default = having(tmp_path, "cola", tfds_dir="")
    assert evaluate.fetch(by_default, evaluate.check(by_default, tmp_path))
    assert (tmp_path / "shared" / "glue" / "cola").is_dir()


def test_the_benchmarks_own_folder_wins_and_is_not_mixed_with_tfds(
    tmp_path, monkeypatch, said
):
    class Asked(BaseException):
        pass

    def asked(*_):
        raise Asked

    monkeypatch.setattr(tfds_source, "_builder", asked)
    for member, text in fake_glue.ARCHIVES["CoLA.zip"].items():
        (tmp_path / member).parent.mkdir(exist_ok=True)
        (tmp_path / member).write_text(text)
    config = having(tmp_path, tfds_dir="", data_dir=str(tmp_path))
    assert names(evaluate.check(config, tmp_path)) == ["cola"]
    assert "MRPC is not scored: MRPC/train.tsv is missing" in said[0]
    assert "MNLI is not scored: MNLI/train.tsv is missing" in said[1]
    with pytest.raises(Asked):  # a folder for TFDS is named
        evaluate.check(having(tmp_path, data_dir=str(tmp_path)), tmp_path)


def test_what_another_program_prepared_is_named(server, tmp_path):
    """As TFRecord, for instance, which cannot be read without TensorFlow."""
    load("cola", str(tmp_path / "tfds"))
    (info,) = (tmp_path / "tfds" / "glue").rglob("dataset_info.json")
    text = info.read_text()
    assert '"array_record"' in text
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"TFRECORD.*another --config\.glue\.tfds_dir"):
        evaluate.check(having(tmp_path, "cola"), tmp_path)


def test_the_builder_is_found_in_a_fresh_process(tmp_path):
    """Without h5py the library's own list of builders stops before GLUE's."""
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "from cramjax.glue import tfds_source\n"
        "def found(self, **_): sys.exit(7)\n"
        "tfds.core.DatasetBuilder.download_and_prepare = found\n"
        "from pathlib import Path\n"
        f"tfds_source._splits('cola', Path({str(tmp_path)!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7

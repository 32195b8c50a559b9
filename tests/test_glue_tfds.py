"""GLUE from TFDS: archives made up here, no network, no TensorFlow."""

import dataclasses
import functools
import http.server
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from cramjax import config
from cramjax.errors import UserError
from cramjax.glue import data, tasks, tfds_source

GLUE = config.load("configs/default.py").glue


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def mnli(*labels):
    head = ("index", "sentence1", "sentence2", "gold_label")
    return tsv(
        head,
        *((str(i), f"A {i}.", 'B "q.', label) for i, label in enumerate(labels)),
    )


ARCHIVES = {
    "CoLA.zip": {
        "CoLA/train.tsv": tsv(*(("x", str(i % 2), "", f"S {i}.") for i in range(40))),
        "CoLA/dev.tsv": tsv(("x", "1", "", 'D "q.')),
        "CoLA/test.tsv": tsv(("index", "sentence"), ("0", "T.")),
    },
    "STS-B.zip": {
        f"STS-B/{name}.tsv": tsv(
            ("index", "sentence1", "sentence2", "score"), ("0", "A.", "B.", "3.800")
        )
        for name in ("train", "dev", "test")
    },
    "MNLI.zip": {
        "MNLI/train.tsv": mnli("contradiction", "entailment", "neutral"),
        "MNLI/dev_matched.tsv": mnli("neutral"),
        "MNLI/dev_mismatched.tsv": mnli("neutral", "contradiction"),
        "MNLI/test_matched.tsv": mnli("-1").replace("gold_label", "other"),
        "MNLI/test_mismatched.tsv": mnli("-1").replace("gold_label", "other"),
    },
}
_PAIRS = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
MRPC = {
    "msr_paraphrase_train.txt": "\ufeff"
    + tsv(_PAIRS, ("1", "7", "8", "A.", "B."), ("0", "1", "2", "C.", "D.")),
    "msr_paraphrase_test.txt": "\ufeff" + tsv(_PAIRS, ("1", "3", "4", "E.", "F.")),
    "data_mrpc_dev_ids.tsv": tsv(("1", "2")),
}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Nothing is prepared there; what would be downloaded is in downloads/manual."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.text import glue

    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("tfds")
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    for name, members in ARCHIVES.items():
        with zipfile.ZipFile(manual / name, "w") as archive:
            for member, text in members.items():
                archive.writestr(member, text)
    for name, text in MRPC.items():
        (manual / name).write_text(text, encoding="utf-8")
    known = glue.Glue.url_infos  # sizes and checksums of the official files
    patch = pytest.MonkeyPatch()
    for url, info in list(known.items()):
        if (manual / info.filename).exists():
            made_up = checksums.compute_url_info(manual / info.filename)
            patch.setitem(known, url, made_up)
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
    message = r"QNLI is not scored: glue/qnli cannot .* \(ConnectionError: no network"
    with pytest.raises(UserError, match=message) as error:
        load("qnli", tfds_dir)
    assert "\n" not in str(error.value)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves CoLA's archive at an address of this machine, until it is shut down."""
    from tensorflow_datasets.text import glue

    (tmp_path / "served").mkdir()
    with zipfile.ZipFile(tmp_path / "served" / "CoLA.zip", "w") as archive:
        for member, text in ARCHIVES["CoLA.zip"].items():
            archive.writestr(member, text)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=served.serve_forever).start()
    (cola,) = (c for c in glue.Glue.BUILDER_CONFIGS if c.name == "cola")
    url = f"http://127.0.0.1:{served.server_port}/CoLA.zip"
    monkeypatch.setattr(cola, "data_url", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    served.shutdown()
    served.server_close()


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
        r"glue/cola cannot be prepared in .* \(NewConnectionError: .*refused.*"
        r" \(/CoLA\.zip\)\); put its files into "
    )
    with pytest.raises(UserError, match=message) as error:
        load("cola", str(tmp_path / "tfds"))
    assert "\n" not in str(error.value)
    assert waited and sum(waited) < 2
    assert capfd.readouterr().err == ""
    assert not [r for r in caplog.records if r.name.startswith("urllib3")]


def test_the_builder_is_found_in_a_fresh_process(tmp_path):
    """Without h5py the library's own list of builders stops before GLUE's."""
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "from cramjax.glue import tfds_source\n"
        "def found(self, **_): sys.exit(7)\n"
        "tfds.core.DatasetBuilder.download_and_prepare = found\n"
        "from pathlib import Path\n"
        f"tfds_source._splits('cola', 'CoLA', Path({str(tmp_path)!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7

"""The headline command, `python -m cramjax.main --config=FILE`, as people type it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fake_glue
import numpy as np
import pyarrow
import pytest
from fake_hub import FakeHub

from cramjax import run
from cramjax.main import main

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"  # nobody listens there


@pytest.mark.parametrize(
    ("flags", "workdir"),
    [
        (["--config=configs/a4000.py"], "runs/a4000"),
        (
            ["--config=configs/ablations/architecture.py:heads-4"],
            "runs/architecture-heads-4",
        ),
        (["--workdir=elsewhere", "--config", "configs/a4000.py"], "elsewhere"),
    ],
)
def test_the_workdir_is_named_after_the_config_and_printed_first(
    flags, workdir, monkeypatch, capsys
):
    monkeypatch.setattr(
        run, "run", lambda config, workdir, started_at: print("ran", workdir)
    )
    assert main(flags) == 0
    assert capsys.readouterr().out == f"workdir: {workdir}\nran {workdir}\n"


def test_all_that_is_missing_is_said_at_once(tmp_path):
    """In a folder with a copy of configs/ alone, with neither a GPU nor a network."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    nothing = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "HF_ENDPOINT": NOWHERE}
    places = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
    found = subprocess.run(
        [sys.executable, "-m", "cramjax.main", "--config=configs/a4000.py"],
        cwd=tmp_path,
        env=environment | nothing | places | {"TFDS_DATA_DIR": str(tmp_path / "tfds")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stdout == "workdir: runs/a4000\n"
    gpu, text, glue = found.stderr.splitlines()
    assert gpu.startswith(
        "error: config.platform is 'gpu': must be 'any' where JAX see"
    )
    assert text.startswith("error: config.data.sources: hf://datasets/monology/pile-un")
    assert glue.startswith("error: CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE are ")
    assert "CoLA.zip cannot be downloaded" in glue
    assert f"put the files into {tmp_path / 'tfds/downloads/manual'}, or the" in glue
    assert {path.name for path in tmp_path.iterdir()} <= {"configs", "home"}


WORDS = [a + b for a in ("river", "winter", "castle") for b in ("bank", "gate", "song")]
TOY = (
    *(
        "platform=any",
        "model.dtype=float32",
        "micro_batch=4",
        "budget.hours=0.0",
        "budget.tokens=5120",
    ),
    *("model.attention=xla", "model.width=32", "model.ffn_width=64", "model.layers=1"),
    *("model.heads=2", "model.vocab_size=64", "model.max_length=32"),
    *("batch.sequences=4", "data.held_out_share=0.2", "log.every_steps=10"),
    *("glue.tasks=('cola','mrpc')", "glue.epochs=1", "glue.batch_size=1"),
    *("glue.trials=1", "glue.trials_at_once=1", "glue.head_width=16"),
)


@pytest.fixture
def pile(tmp_path, monkeypatch):
    """A hub with two files of The Pile's form."""
    train = tmp_path / "hub/monology/pile-uncopyrighted/train"
    train.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("00", "01"):
        texts = (" ".join(draw.choice(WORDS, 30)) + "." for _ in range(300))
        lines = "".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in texts)
        packed = pyarrow.compress(lines.encode(), "zstd", asbytes=True)
        (train / f"{name}.jsonl.zst").write_bytes(packed)
    with FakeHub(tmp_path / "hub") as hub:
        hub.use(monkeypatch)
        yield hub
    hub.forget()


def test_from_one_line_to_a_report(pile, tmp_path, monkeypatch, capsys):
    """With a faked hub and GLUE's hosts, which lack one of MRPC's files."""
    files = fake_glue.write(tmp_path / "glue")
    here = tmp_path / "here"
    shutil.copytree(ROOT / "configs", here / "configs")
    monkeypatch.chdir(here)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    command = ["--config=configs/a4000.py", *(f"--config.{key}" for key in TOY)]
    with fake_glue.serving(files, monkeypatch):
        (files / "data_mrpc_dev_ids.tsv").unlink()
        assert main(command) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "workdir: runs/a4000"
    glue = next(n for n, line in enumerate(lines) if "CoLA: from TFDS" in line)
    assert lines[0].startswith(
        "MRPC is not scored: TFDS cannot prepare glue/mrpc: data"
    )
    assert sum("MRPC is not scored" in line for line in lines) == 1  # not tried again
    corpus = next(n for n, line in enumerate(lines) if line.startswith("corpus: "))
    assert 0 < glue < corpus
    assert any(line.startswith("CoLA: pretrained at") for line in lines)
    assert lines[-1] == "report: runs/a4000/report.md"
    assert pile.sent.keys() == {"00.jsonl.zst", "01.jsonl.zst"}
    report = here / "runs/a4000/report.md"
    assert "| CoLA | " in report.read_text()
    assert {path.name for path in here.iterdir()} == {"configs", "data", "runs"}
    report.unlink()
    pile.close()  # what is finished needs neither the hub nor GLUE's hosts
    assert main(command) == 0
    assert report.exists()

import dataclasses
import gzip
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from conftest import TINY, tiny_config

from cramjax import rehearsal
from cramjax.config import BudgetConfig
from cramjax.device import host_memory
from cramjax.errors import UserError
from cramjax.main import main
from cramjax.training import loop, pretrain


def command(folder, *overrides):
    overrides = (*TINY, f"data.dir={folder / 'data'}", *overrides)
    flags = [f"--config.{override}" for override in overrides]
    workdir = f"--workdir={folder / 'runs' / 'one'}"
    return ["--config=configs/small.py", workdir, *flags, "--rehearse"]


@pytest.fixture
def no_network(monkeypatch):
    def connect(*_):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_every_stage_is_tried_and_nothing_is_left(tmp_path, no_network, capsys):
    """Of the two tasks, one has no training set."""
    folder = tmp_path / "tasks" / "RTE"
    folder.mkdir(parents=True)
    (folder / "dev.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"
    )
    flags = (
        "glue.tasks=('rte','intents10')",
        f"glue.data_dir={folder.parent}",
        f"glue.superglue_dir={folder.parent}",
    )
    assert main(command(tmp_path, *flags)) == 0
    first, *out = capsys.readouterr().out.splitlines()
    assert first == f"workdir: {tmp_path / 'runs' / 'one'}"
    [missing] = [line for line in out if "RTE" in line]
    assert "RTE is not scored: RTE/train.tsv is missing; " in missing
    out.remove(missing)
    stages = [line.split(": ")[1] for line in out]
    assert all(line.startswith("rehearsal: ") for line in out)
    assert stages == [
        *("disk", "text", "fine-tuning data", "corpus", "disk", "run", "training"),
        *("checkpoint", "fine-tuning", "budget"),
    ]
    assert "checkpoints will take 1.9 MB of " in out[0]
    assert "embedded:books: " in out[1] and "1 of 1 parts" in out[1]
    assert out[2].endswith("readable: Intents, 10 examples per class")
    assert "8 steps of 4 x 32 tokens" in out[5]
    assert " tokens/s; 8 updates, loss 5." in out[6]
    assert "read back equal" in out[7]
    assert re.search(
        r"one step of 2 trials, scored on Intents, 10 examples per class; "
        r"an estimate of the whole: \d+\.\d minutes",
        out[8],
    )
    assert "5.12e+03 tokens take about " in out[9]
    assert list(tmp_path.iterdir()) == [folder.parent]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("platform=gpu", "config.platform is 'gpu': must be 'any' where JAX sees only"),
        ("data.sources=nowhere.txt", "'nowhere.txt' matches no file"),
        ("data.sources={folder}/empty.txt", "no text at the beginning of '"),
        ("data.dir={folder}/empty.txt", "cannot be written; pass another one"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, override, message, capsys):
    (tmp_path / "empty.txt").touch()
    assert main(command(tmp_path, override.format(folder=tmp_path))) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_too_large_a_micro_batch_is_one_line(tmp_path, monkeypatch, capsys):
    def train(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(pretrain, "train", train)
    assert main(command(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config.micro_batch is 4: too much for the memory")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_host_has_no_memory_for_is_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_memory, "limit_bytes", lambda: 10**6)
    for flags in (command(tmp_path), command(tmp_path)[:-1]):
        assert main(flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: config.micro_batch is 4: the training step ne")
        assert error.count("\n") == 1
    assert not list((tmp_path / "runs" / "one").glob("checkpoints/*"))


@pytest.mark.parametrize("moment", ["sample", "training"])
def test_an_interrupted_rehearsal_says_that_nothing_stays(
    tmp_path, monkeypatch, capsys, moment
):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    if moment == "sample":
        monkeypatch.setattr(rehearsal, "_sample", interrupt)
    else:
        monkeypatch.setattr(loop, "too_many_nonfinite", interrupt)
    assert main(command(tmp_path)) == 143
    error = capsys.readouterr().err
    assert error.endswith("interrupted: a rehearsal leaves nothing behind\n")
    assert list(tmp_path.iterdir()) == []


def test_the_flag_is_a_switch(tmp_path, capsys):
    *others, _ = command(tmp_path)
    assert main([*others, "--rehearse=1"]) == 2
    assert "--rehearse takes no value" in capsys.readouterr().err
    assert main([*others, "--rehears"]) == 2
    assert "did you mean --rehearse?" in capsys.readouterr().err


def test_a_full_disk_is_seen_beforehand(tiny, corpus, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(
        tiny, data=dataclasses.replace(tiny.data, dir=str(tmp_path / "data"))
    )
    free = {"checkpoints": 10**9, "corpus": 5 * 10**9}
    workdir = tmp_path / "runs"
    workdir.mkdir()

    def disk_usage(path):
        name = "checkpoints" if path == workdir else "corpus"
        return SimpleNamespace(free=free[name])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)

    rehearsal._check_corpus_disk(config, 2e9)  # tokens of 2 bytes
    assert "corpus will take 4.0 GB of 5.0 GB free" in capsys.readouterr().out
    free["corpus"] = 3 * 10**9
    with pytest.raises(UserError, match=r"data\.dir .* take 4\.0 GB, .* 3\.0 GB left"):
        rehearsal._check_corpus_disk(config, 2e9)
    assert corpus.path.parent == Path(tiny.data.dir)
    rehearsal._check_corpus_disk(tiny, 2e9)  # it is there already
    other = dataclasses.replace(tiny.data, sep=False)
    with pytest.raises(UserError, match=r"data\.dir .* take 4\.0 GB"):
        rehearsal._check_corpus_disk(dataclasses.replace(tiny, data=other), 2e9)
    state = 3  # more than so many numbers of 4 bytes for each parameter
    parameters = 256 * 32
    free["checkpoints"] = 3 * state * 4 * parameters
    with pytest.raises(UserError, match=r"config\.checkpoint\.keep is 2: .*make room"):
        rehearsal._check_workdirs_disk(config, workdir)
    free["checkpoints"] = 10**6
    with pytest.raises(UserError, match=r"config\.checkpoint\.keep is 2: .*make room"):
        rehearsal._check_workdirs_disk(config, workdir)
    kept = workdir / "checkpoints" / "7"
    kept.mkdir(parents=True)
    (kept / "state").write_bytes(bytes(10**6))  # then there is room for what is new
    rehearsal._check_workdirs_disk(config, workdir)


def test_a_checkpoint_that_is_read_otherwise_is_named(finished, tiny):
    weights, _ = pretrain.read_back(tiny, finished[0])
    rehearsal._report_training(tiny, weights, finished[0])
    scale = weights["pretrained"]["final_norm"]["scale"]
    weights["pretrained"]["final_norm"]["scale"] = scale.at[3].add(1e-6)
    with pytest.raises(UserError, match="not read as it was written"):
        rehearsal._report_training(tiny, weights, finished[0])


def test_what_the_budget_buys(tiny):
    """4 x 32 tokens in 0.01 s are 12,800 a second; 100 s go to compilation."""
    nothing = {"hours": 0.0, "tokens": 0, "flops": 0.0}
    for budget, expected in (
        ({"hours": 2.0}, "2 hours buy about 9.1e+07 tokens, 9.1 passes over the text"),
        ({"tokens": 12_800 * 500}, "6.4e+06 tokens take about 10.0 minutes"),
    ):
        config = dataclasses.replace(tiny, budget=BudgetConfig(**nothing | budget))
        assert rehearsal.estimate(config, 0.01, 100.0, 1e7) == expected
    config = dataclasses.replace(tiny, budget=BudgetConfig(2.0, 0, 0.0))
    short = rehearsal.estimate(config, 0.01, 100.0, 1e9)
    assert short == "2 hours buy about 9.1e+07 tokens"


def test_the_beginning_of_every_source_is_read(tmp_path, data_dir, capsys):
    """Of nine parts every second one, and no more of each than its share."""
    for number in range(9):
        record = json.dumps({"text": f"{number} " + "long " * 20_000})
        (tmp_path / f"{number}.jsonl").write_text(f"{record}\n" * 30)
    (tmp_path / "one.txt").write_text("a text\n\nanother")
    config = tiny_config(
        data_dir, f"data.sources=('{tmp_path}/?.jsonl','{tmp_path}/one.txt')"
    )
    texts, all_chars = rehearsal._sample(config)
    assert [text[0] for text in texts[::2]] == ["0", "2", "4", "6", "8", "a"]
    assert texts[-2:] == ["a text", "another"]
    per_part = rehearsal.SAMPLE_CHARS // 2 // 5
    assert sum(map(len, texts)) == 5 * per_part + len("a textanother")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("10 documents at the beginning of 5 of 9 parts")
    assert all_chars == sum(path.stat().st_size for path in tmp_path.iterdir())
    data = dataclasses.replace(config.data, max_chars=1000)
    assert rehearsal._sample(dataclasses.replace(config, data=data))[1] == 1000


def test_files_that_give_no_document_are_not_opened(tmp_path, data_dir):
    """With fewer documents than files, most files give none."""
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number}")
    overrides = f"data.sources={tmp_path}/*.txt", "data.max_documents=3"
    texts, _ = rehearsal._sample(tiny_config(data_dir, *overrides))
    assert len(texts) == 3


def test_compressed_text_is_more_than_its_bytes(tmp_path, data_dir):
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(b"some text"))
    config = tiny_config(data_dir, f"data.sources={path}")
    assert rehearsal._sample(config)[1] == 2.5 * path.stat().st_size

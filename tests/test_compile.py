import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import TINY, tiny_config

from cramjax import run as run_module
from cramjax.device.compile import (
    FIRST_TOKEN,
    MicroStep,
    abstract,
    tree_bytes,
    use_cache,
)
from cramjax.tokens import SPECIAL_TOKENS
from cramjax.training import log as metrics_log
from cramjax.training import masking, pretrain, train_step

# Compiles the step of a tiny model, takes three and prints how long and what came out.
PROGRAM = """
import json, sys
import jax
import numpy as np
from cramjax.device.compile import use_cache
from cramjax.training import train_step
from cramjax.config import load

hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(1) if event.endswith("cache_hits") else None
)
config = load("configs/small.py", sys.argv[2:])
use_cache(sys.argv[1])
step = train_step.build(config).compile_ahead()
state, [tokens_BxL] = step.fresh_state(), step.random_batches(1)
losses = []
for i in range(3):
    state, metrics = step.function(state, tokens_BxL, np.float32(i / 3))
    losses.append(float(metrics["loss"]))
print(json.dumps([step.compile_s, len(hits), losses, step.function._cache_size()]))
"""


@pytest.fixture
def no_cache():
    """As a user's process begins: JAX knows of no folder."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_second_start_finds_the_compiled_step(tmp_path):
    """In new processes, which have nothing to say on stderr."""
    folder = tmp_path / "made" / "cache"
    named = ("JAX_", "XLA_")  # settings of the tests
    environment = {k: v for k, v in os.environ.items() if not k.startswith(named)}

    def start():
        command = [sys.executable, "-c", PROGRAM, str(folder), *TINY]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return json.loads(done.stdout)

    cold_s, hits, losses, programs = start()
    assert (hits, programs) == (0, 1)
    files = sorted(path.name for path in folder.iterdir())
    assert any(name.startswith("jit_micro_step") for name in files)
    warm_s, hits, again, programs = start()
    assert (hits, programs) == (len(files), 1)
    assert sorted(path.name for path in folder.iterdir()) == files
    assert again == losses
    assert warm_s < cold_s


def test_another_folder_that_jax_knows_comes_first(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before
    use_cache(str(tmp_path / "cache"))
    assert jax.config.jax_compilation_cache_dir == before
    assert not (tmp_path / "cache").exists()


def test_no_folder_and_one_that_cannot_be_used(tmp_path, no_cache, capsys):
    (tmp_path / "file").touch()
    use_cache("")
    assert capsys.readouterr().out == ""
    use_cache(str(tmp_path / "file" / "cache"))
    out = capsys.readouterr().out
    assert out.startswith("config.compilation_cache is ") and out.count("\n") == 1
    assert jax.config.jax_compilation_cache_dir is None


def test_a_step_compiled_ahead_is_the_one_that_trains(
    tiny, corpus, tmp_path, monkeypatch
):
    """Its seconds are charged, and the loop compiles nothing more."""
    traced = []

    def mask_tokens(*args, **kwargs):  # runs when the step is traced, to be compiled
        traced.append(1)
        return masking.mask_tokens(*args, **kwargs)

    monkeypatch.setattr(train_step, "mask_tokens", mask_tokens)
    started_at = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(train_step.build(tiny).compile_ahead)
        folder = tmp_path / "a"
        weights, summary = pretrain.pretrain(tiny, corpus, folder, ahead, started_at)
    step = ahead.result()
    assert traced == [1]
    assert summary["seconds"]["compilation"] == step.compile_s > 0
    expected, other = pretrain.pretrain(tiny, corpus, tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
    events = [
        line
        for line in metrics_log.read(tmp_path / "a" / "metrics.jsonl")
        if line.get("event") == "first_step"
    ]
    assert [event["compile_s"] for event in events] == [step.compile_s]
    assert events[0]["first_step_s"] == summary["first_step_s"] > step.compile_s
    assert other["first_step_s"] > other["seconds"]["compilation"] > 0


def test_the_first_step_counts_from_the_sessions_start_without_the_corpus(
    tiny, tmp_path, monkeypatch
):
    def built_in_a_minute(config):
        monkeypatch.setattr(run_module.time, "monotonic", lambda: real() + 60)
        return prepare(config)

    real, prepare = time.monotonic, run_module.prepare.prepare
    monkeypatch.setattr(run_module.prepare, "prepare", built_in_a_minute)
    glue = dataclasses.replace(tiny.glue, tasks=())
    config = dataclasses.replace(tiny, glue=glue)
    folder = dataclasses.replace(config.data, dir=str(tmp_path / "data"))
    started_at = real() - 1000
    config = dataclasses.replace(config, data=folder)
    run_module.run(config, tmp_path / "new", started_at)
    summary = json.loads((tmp_path / "new" / "pretrain.json").read_text())
    assert 1000 < summary["first_step_s"] < 1050


def test_a_curriculum_compiles_as_it_comes_to_its_lengths(data_dir):
    stages = ("curriculum.lengths=(8,32)", "curriculum.starts=(0.0,0.5)")
    config = tiny_config(data_dir, *stages)
    assert train_step.build(config).compile_ahead().compile_s == 0


def test_a_corpus_that_is_there_is_checked_meanwhile(
    tiny, corpus, tmp_path, monkeypatch
):
    calls, compiling = [], threading.Event()

    def prepare(config):
        assert not run_module.prepare.corpus_path(config).exists() or compiling.wait(60)
        calls.append("prepare")
        return corpus

    def finish(*_):
        raise KeyboardInterrupt

    def compile_ahead(step):
        calls.append("compile")
        compiling.set()
        return step

    monkeypatch.setattr(MicroStep, "compile_ahead", compile_ahead)
    monkeypatch.setattr(run_module.prepare, "prepare", prepare)
    monkeypatch.setattr(run_module, "pretrain", finish)
    with pytest.raises(KeyboardInterrupt):
        run_module.run(tiny, tmp_path / "there")
    assert calls == ["compile", "prepare"]
    calls.clear()
    monkeypatch.setattr(
        run_module.prepare, "corpus_path", lambda config: tmp_path / "not"
    )
    with pytest.raises(KeyboardInterrupt):
        run_module.run(tiny, tmp_path / "new")
    assert calls == ["prepare", "compile"]


def test_random_tokens_are_as_frequent_as_in_text_and_never_special(data_dir):
    config = tiny_config(data_dir, "micro_batch=2000", "batch.sequences=2000")
    one, two = train_step.build(config).random_batches(2)
    assert one.dtype == np.uint16 and one.shape == (2000, 32)
    assert (one != two).mean() > 0.5
    counts = np.bincount(one.ravel(), minlength=256)
    assert len(SPECIAL_TOKENS) <= FIRST_TOKEN
    assert counts[:FIRST_TOKEN].sum() == 0 and counts[FIRST_TOKEN:].min() > 0
    assert counts[8] / counts[9] == pytest.approx(2, rel=0.1)
    assert counts[8] / counts[17] == pytest.approx(10, rel=0.15)


def test_a_program_needs_its_state_and_its_activations(tiny):
    step = train_step.build(tiny)
    state = tree_bytes(abstract(step.init_state, step.sharding))
    needed = step.compile_ahead().needed_bytes
    logits = 4 * 8 * 256 * 4  # of 4 rows, 8 predicted positions, float32
    assert state + logits < needed < 20 * state
    wide = train_step.build(dataclasses.replace(tiny, micro_batch=12)).compile_ahead()
    # Scores of 12 rows, 2 heads, 2 layers, float32, of which 4 were counted already.
    assert wide.needed_bytes > needed + (12 - 4) * 2 * 2 * 32 * 32 * 4

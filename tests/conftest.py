"""Settings and pieces that all tests share."""

import dataclasses
import logging
import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from cramjax import config as config_module
from cramjax import word_order
from cramjax.config import Config
from cramjax.data.prepare import prepare
from cramjax.glue import scores
from cramjax.output import print_messages
from cramjax.run import run
from cramjax.training import schedules, train_step

DRAWS = scores.DRAWS
# Without XLA's fusion emitters, programs that are not optimized (see below) compile in
# half the time, in processes that tests start, too. Later versions do not have the
# flag; XLA_FLAGS= leaves it out.
if jax.__version_info__ < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

# A whole run in seconds: two layers, 40 micro-steps of 4 x 32 tokens.
TINY = (
    "seed=1",
    "micro_batch=4",
    "model.width=32",
    "model.ffn_width=64",
    "model.layers=2",
    "model.heads=2",
    "model.vocab_size=256",
    "model.max_length=32",
    "batch.sequences=12",
    "averaging.ema_decay=0.9",
    "averaging.lawa_last=2",
    "averaging.lawa_every=3",
    "budget.tokens=5120",
    "log.every_steps=5",
    "guard.max_loss=100.0",
    "validation.max_blocks=6",
    "glue.tasks=('intents10',)",
    "glue.max_train_rows=32",
    "glue.trials=2",
    "glue.max_length=32",
    "glue.epochs=1",
    "glue.learning_rates=(1e-3,)",
    "glue.head_width=16",
)


def tiny_config(data_dir, *overrides: str) -> Config:
    overrides = (*TINY, f"data.dir={data_dir}", *overrides)
    return config_module.load("configs/small.py", overrides)


def programs(config, mesh=None):
    """Returns what makes a fresh training state, and the micro-step; both jitted."""
    mesh = mesh or train_step.make_mesh()
    init = jax.jit(
        lambda: train_step.init_state(config),
        out_shardings=train_step.replicated(mesh),
    )
    return init, train_step.make_micro_step(config, mesh)


def start(config, mesh=None):
    """Returns a fresh training state and the jitted micro-step."""
    init, micro_step = programs(config, mesh)
    return init(), micro_step


def run_script(name, *flags):
    """Runs one of scripts/ as a user does; returns the finished process."""
    command = [sys.executable, f"scripts/{name}", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def script_error(monkeypatch, capsys):
    """Returns what one of scripts/ prints on stderr when it is called wrongly."""

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *flags])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(f"scripts/{name}", run_name="__main__")
        assert exited.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error.removeprefix("error: ")

    return run


def unpacked(version, folder):
    """Returns a finished workdir of an earlier version, see golden/README.md."""
    with tarfile.open(Path(__file__).parent / "golden" / f"{version}.tar.xz") as file:
        # Python 3.11.3 and earlier do not have the filter, 3.12 warns without one.
        file.extraction_filter = getattr(tarfile, "data_filter", None)
        file.extractall(folder)
    return folder / version


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Shared, so that the corpus is built once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny(data_dir) -> Config:
    return tiny_config(data_dir)


@pytest.fixture(scope="session")
def corpus(tiny):
    return prepare(tiny)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Many tests compile the same program: once is enough."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # all workers share one
    folder = str(base / "jit")
    jax.config.update("jax_compilation_cache_dir", folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # of processes that tests start
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # Small programs run for a moment: optimising them would take longer.
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def messages():
    """Tests read from `capsys` what a command prints."""
    print_messages()


@pytest.fixture
def said():
    """Collects the messages of a test."""
    messages = []

    class Collector(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Collector()
    logging.getLogger("cramjax").addHandler(handler)
    yield messages
    logging.getLogger("cramjax").removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def few_pairs():
    """Scoring word order takes seconds, and few tests look at it."""
    word_order.PAIRS = word_order.MIN_PAIRS - 1


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """An interval from 500 draws takes seconds, and most tests do not look at it."""
    monkeypatch.setattr(scores, "DRAWS", 20)


@pytest.fixture(scope="session")
def finished(tiny, corpus, tmp_path_factory):
    """A finished run, and the config keys its code has read."""
    reads = set()
    patch = pytest.MonkeyPatch()
    config_folder = os.path.dirname(config_module.__file__)
    sections = {f.name: f.type for f in dataclasses.fields(Config)}
    classes = [(Config, "")]
    classes += [
        (c, f"{n}.") for n, c in sections.items() if dataclasses.is_dataclass(c)
    ]
    for cls, prefix in classes:

        def recording(self, name, prefix=prefix):
            # Reads by generated __init__, __eq__ and __hash__ and by `dataclasses` do
            # not count; those by the config's own properties are reads of the caller.
            frame = sys._getframe(1)
            while frame.f_code.co_filename.startswith(config_folder):
                frame = frame.f_back
            caller = frame.f_code.co_filename
            if caller.startswith("/") and caller != dataclasses.__file__:
                reads.add(prefix + name)
            return object.__getattribute__(self, name)

        patch.setattr(cls, "__getattribute__", recording, raising=False)
    # Also if the first test to ask for the run has already set few draws.
    patch.setattr(scores, "DRAWS", DRAWS)
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    jax.clear_caches()  # what was traced by another test would not be read again
    try:
        run(tiny, workdir)
        prepare(tiny_config(workdir, "data.dedup_bytes=100", "data.max_chars=300000"))
        for curve in schedules.CURVES:  # a key may belong to one of them
            other = dataclasses.replace(tiny.schedule, curve=curve, warmup=0.1)
            schedules.factor(np.float32(0.5), other)
    finally:
        patch.undo()
    return workdir, reads

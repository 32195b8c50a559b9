import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest
from conftest import tiny_config

from cramjax.device import host_memory, tuning
from cramjax.errors import UserError
from cramjax.run import check_platform, run
from cramjax.training.train_step import build

INF = float("inf")
OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def step_of(config):
    """Stands in for `train_step.build` where nothing is compiled."""
    return SimpleNamespace(config=config)


@pytest.fixture
def automatic(data_dir):
    return tiny_config(data_dir, "micro_batch=0", "model.attention=auto")


@pytest.fixture
def gpu(monkeypatch):
    """A card of compute capability 8.6."""
    device = SimpleNamespace(compute_capability="8.6", device_kind="card")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return device


def test_memory_that_may_be_used(gpu):
    gpu.memory_stats = lambda: {"bytes_limit": 100 * 10**9}
    assert tuning.memory_limit_bytes() == 95 * 10**9
    gpu.memory_stats = lambda: None
    assert tuning.memory_limit_bytes() == host_memory.limit_bytes() // 2
    gpu.device_kind = "NVIDIA RTX A4000"
    assert tuning.memory_limit_bytes() == int(0.95 * 16 * 2**30)


def test_the_micro_batch_is_the_largest_that_runs(automatic, monkeypatch, said):
    """6 sequences should fit in 7 GB, and do not; not one does in half a GB."""

    def seconds_per_step(step, at_least_s):
        if step.config.micro_batch > 4:
            raise OUT_OF_MEMORY
        return 1.0

    def needed_bytes(step):
        return step.config.micro_batch * 1e9

    monkeypatch.setattr(tuning, "needed_bytes", needed_bytes)
    monkeypatch.setattr(tuning, "seconds_per_step", seconds_per_step)
    monkeypatch.setattr(tuning, "memory_limit_bytes", lambda: 7 * 10**9)
    config = tuning.choose(automatic, build)
    assert (config.micro_batch, config.model.attention) == (4, "xla")
    assert dataclasses.replace(config, micro_batch=0, model=automatic.model) == (
        automatic
    )
    asked = [line for line in said if line.endswith(" ...")]
    assert asked == ["micro-batch: compiling for 12 sequences ...", *asked[1:]]
    assert [line for line in said[1:] if line not in asked] == [
        "micro-batch: 6 sequences do not fit after all",
        "micro-batch: 4 sequences, the most that fit in 7.0 GB",
    ]
    monkeypatch.setattr(tuning, "memory_limit_bytes", lambda: 5 * 10**8)
    with pytest.raises(UserError, match=r"config\.micro_batch is 0: not one sequence"):
        tuning.choose(automatic, build)


def test_another_error_is_not_taken_for_too_little_memory(automatic, monkeypatch):
    def seconds_per_step(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(tuning, "needed_bytes", lambda *_, **__: 0)
    monkeypatch.setattr(tuning, "seconds_per_step", seconds_per_step)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        tuning.choose(automatic, build)


@pytest.mark.parametrize(
    ("overrides", "capability", "expected"),
    [
        ((), "8.0", True),
        ((), "12.0", True),
        ((), "7.5", False),
        ((), "gfx90a", False),
        (("model.dtype=float32",), "9.0", False),
        (("model.heads=4", "model.width=144"), "9.0", False),  # 36 channels
        (("model.heads=1", "model.width=256"), "9.0", False),
        (("model.max_length=31",), "9.0", False),
        (("model.mixing=fourier",), "9.0", False),
        (("objective.separate_documents=True",), "9.0", False),
        (("objective.dropout=0.1",), "9.0", False),
    ],
)
def test_where_cudnn_attends(data_dir, gpu, overrides, capability, expected):
    gpu.compute_capability = capability
    config = tiny_config(data_dir, "model.dtype=bfloat16", *overrides)
    assert tuning.attentions(config) == ["xla", *["cudnn"] * expected]


def test_cudnn_on_an_old_card_is_refused(data_dir, gpu):
    config = tiny_config(data_dir, "model.dtype=bfloat16", "model.attention=cudnn")
    check_platform(config)
    gpu.compute_capability = "7.5"
    with pytest.raises(UserError, match=r"attention is 'cudnn': must be 'xla' on card"):
        check_platform(config)


@pytest.mark.parametrize(
    ("cudnn", "expected", "line"),
    [
        (0.5, "cudnn", "attention: cudnn (tokens/s with 4 sequences: xla 128, cudnn"),
        (2.0, "xla", "attention: xla (tokens/s with 4 sequences: xla 128, cudnn 64)"),
        (
            RuntimeError("no cuDNN\nhere"),
            "xla",
            "does not run here with 4 sequences (no cuDNN here)",
        ),
    ],
)
def test_the_faster_attention_is_taken(
    data_dir, gpu, monkeypatch, cudnn, expected, line, said
):
    seconds = {"xla": 1.0, "cudnn": cudnn}

    def seconds_per_step(step):
        assert step.config.micro_batch == 4
        result = seconds[step.config.model.attention]
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(tuning, "seconds_per_step", seconds_per_step)
    config = tiny_config(data_dir, "model.dtype=bfloat16", "model.attention=auto")
    chosen = tuning.choose(config, step_of)
    assert chosen.model.attention == expected
    assert any(line in text for text in said)


def test_attentions_are_compared_with_what_fits(data_dir, gpu, monkeypatch, said):
    def seconds_per_step(step):
        if step.config.micro_batch > 3:
            raise OUT_OF_MEMORY
        return 1.0 if step.config.model.attention == "cudnn" else 2.0

    monkeypatch.setattr(tuning, "seconds_per_step", seconds_per_step)
    flags = "model.dtype=bfloat16", "model.attention=auto", "micro_batch=0"
    assert tuning._attention(tiny_config(data_dir, *flags), step_of) == "cudnn"
    assert said[-1].startswith("attention: cudnn (tokens/s with 3 sequences: xla 48,")
    fixed = tiny_config(data_dir, *flags[:2])  # with a micro-batch of 4
    with pytest.raises(UserError, match="no attention runs with 4 sequences"):
        tuning._attention(fixed, step_of)


def test_a_run_records_what_was_chosen_and_keeps_to_it(
    automatic, corpus, tmp_path, monkeypatch, capsys
):
    """On a CPU with room for everything: the whole batch at once."""
    del corpus  # it is there
    glue = dataclasses.replace(automatic.glue, tasks=())
    automatic = dataclasses.replace(automatic, glue=glue)
    run(automatic, tmp_path)
    assert "micro-batch: 12 sequences, the most that fit in " in capsys.readouterr().out
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert (recorded["micro_batch"], recorded["model"]["attention"]) == (12, "xla")
    summary = json.loads((tmp_path / "pretrain.json").read_text())
    assert summary["tokens"] == summary["micro_steps"] * 12 * 32

    def choose(*_):
        raise AssertionError("chosen again")

    monkeypatch.setattr(tuning, "choose", choose)
    run(automatic, tmp_path)  # finished
    before = (tmp_path / "pretrain.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text()) == recorded
    monkeypatch.undo()
    (tmp_path / "pretrain.json").unlink()
    run(automatic, tmp_path)  # nothing of the budget is left
    again = json.loads((tmp_path / "pretrain.json").read_text())
    assert again["held_out_loss"] == json.loads(before)["held_out_loss"]
    assert "micro-batch:" not in capsys.readouterr().out
    other = dataclasses.replace(automatic, micro_batch=4)
    with pytest.raises(UserError, match=r"config\.micro_batch=12, not 4"):
        run(other, tmp_path)
    smaller = dataclasses.replace(automatic.batch, sequences=8)
    other = dataclasses.replace(automatic, batch=smaller)
    with pytest.raises(UserError, match=r"config\.batch\.sequences=12, not 8"):
        run(other, tmp_path)


def test_a_whole_number_of_micro_batches_makes_up_the_batch():
    assert tuning.micro_batches(12) == [1, 2, 3, 4, 6, 12]
    assert tuning.micro_batches(1) == [1]
    small = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192]
    # 22 x 384 would be 8448, 3 % more than 8192.
    assert tuning.micro_batches(8192) == [*small, 256, 512, 1024, 2048, 4096, 8192]


@pytest.mark.parametrize("limit", [1, 10.2, 26, 31, 75, 300, 10**6])
@pytest.mark.parametrize("first", [1, 64, 10**4])
@pytest.mark.parametrize("bend", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("unknown_above", [INF, 200])
def test_the_search_finds_all_that_fit_and_asks_little(
    limit, first, bend, unknown_above
):
    ladder = tuning.micro_batches(1024)
    need = {n: 10 + n / 4 * (1 + bend * n / 1024) for n in ladder}
    need = {n: x if n <= unknown_above else INF for n, x in need.items()}
    asked = []

    def need_bytes(size):
        asked.append(size)
        return need[size]

    found = tuning.largest_first(ladder, limit, need_bytes, fixed_bytes=10, first=first)
    assert found == [n for n in reversed(ladder) if need[n] <= limit]
    assert len(asked) == len(set(asked)) <= 7


def test_what_cannot_be_compiled_is_come_down_from_quickly():
    asked = []

    def need_bytes(size):
        asked.append(size)
        return 1.0 if size <= 2 else INF

    ladder = tuning.micro_batches(8192)
    found = tuning.largest_first(ladder, 100, need_bytes, fixed_bytes=0, first=512)
    assert found == [2, 1]
    assert len(asked) <= 6


def test_nothing_to_choose_from():
    def need_bytes(size):
        raise AssertionError(size)

    assert tuning.largest_first([], 1, need_bytes, fixed_bytes=0) == []

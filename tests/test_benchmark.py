import dataclasses
import importlib.util
import json
import runpy
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from bench import extras, report, suite, timing
from bench import step as stepping
from bench.step import TrainingStep, variant
from bench.timing import Deadline
from conftest import tiny_config

from cramjax.device import monitor, tuning
from cramjax.device.cards import CARDS
from cramjax.device.monitor import GpuStats
from cramjax.errors import UserError
from cramjax.glue.data import Encoded
from cramjax.model.flops import train_flops_per_token
from cramjax.tokens import MASK, PAD
from cramjax.training import train_step

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's threads wait for each other, which takes long where others compute."""
    if HAS_TORCH:
        import torch

        torch.set_num_threads(1)


# The peer has no averages; one layer compiles sooner.
PLAIN = ("averaging.ema_decay=0.0", "averaging.lawa_last=0", "model.layers=1")
UNKNOWN = GpuStats(*(None for _ in dataclasses.fields(GpuStats)))
TINY_FLAGS = [
    "--config=configs/small.py",
    "--config.model.width=32",
    "--config.micro_batch=4",
]


@pytest.fixture
def config(data_dir):
    return tiny_config(data_dir, *PLAIN)


@pytest.fixture
def step(config):
    return TrainingStep(variant(config, "xla", 4))


@pytest.fixture
def deadline():
    return Deadline(1000)


@pytest.fixture
def short_windows(monkeypatch):
    monkeypatch.setattr(stepping, "WINDOW_S", 0.02)
    monkeypatch.setattr(stepping, "MAX_STEPS", 2)
    monkeypatch.setattr(extras, "TRIALS_S", 0.02)
    monkeypatch.setattr(extras, "LOOP_S", 1.0)
    monkeypatch.setattr(extras, "READ_S", 0.02)
    monkeypatch.setattr(suite, "LADDER", (2,))


@pytest.mark.slow  # part b of test_check_gpu runs it, too
def test_the_whole_benchmark(config, short_windows, monkeypatch, capsys):
    if HAS_TORCH:  # compiling takes half a minute
        peer = importlib.import_module("bench.peer")
        monkeypatch.setattr(peer, "ROUNDS", 2)
        monkeypatch.setattr(importlib.import_module("torch"), "compile", lambda f: f)
    facts = json.loads(json.dumps(suite.measure(config, 100)))
    assert [row["micro_batch"] for row in facts["variants"]] == [4, 8]
    assert facts["tokens_per_s"] == max(r["tokens_per_s"] for r in facts["variants"])
    assert facts["mfu"] is None
    if HAS_TORCH:
        assert facts["ratio_to_pytorch"] == facts["pytorch"]["ratio"]["median"] > 0
        assert facts["left_out"] == []
    else:
        assert facts["ratio_to_pytorch"] is facts["pytorch"] is None
        no_torch = ["PyTorch", "ModuleNotFoundError: No module named 'torch'"]
        assert facts["left_out"] == [no_torch]
    assert min(facts["host"].values()) > 1
    assert facts["trials"]["ratio"]["rounds"] == 3
    assert facts["trials"]["length"] == 32
    assert facts["correctness"]["xla"]["steps"] == 50
    row = facts["variants"][0]
    assert row["compile_s"] > 0 and row["memory_from"] == "compiler"
    # Next to nothing but products: the compiler counts the rest, too.
    assert 1.0 < row["flops_over_formula"] < 2.0
    assert row["joules_per_million_tokens"] is None
    assert facts["environment"]["packages"]["jax"] == jax.__version__
    assert facts["config"]["model"]["width"] == 32
    text = "\n".join(report.lines(facts))
    with_torch = (
        "PyTorch, 4 x 32 ",
        "speed over PyTorch's (torch.compile; xla, micro-batch 4)",
    )
    for part in (
        "xla, 4 x 32 ",
        "xla, 8 x 32 ",
        "reading batches ",
        "the loop alone, 128 x 32 ",
        "not measured",
        "time of 5 fine-tuning trials",
        *(with_torch if HAS_TORCH else ("left out: PyTorch: ModuleNotFoundError",)),
    ):
        assert part in text, part


def test_without_time_the_first_variant_is_measured_and_the_rest_is_named(
    config, short_windows, monkeypatch
):
    # The micro-batch was left to the device.
    monkeypatch.setattr(tuning, "choose", lambda *_: config)
    asked = dataclasses.replace(config, micro_batch=0)
    facts = suite.measure(asked, 1e-9)
    assert [row["micro_batch"] for row in facts["variants"]] == [4]
    assert facts["correctness"]["xla"]["steps"] == 5
    assert facts["ratio_to_pytorch"] is None
    assert [what for what, _ in facts["left_out"]] == [
        "PyTorch",
        "the host alone",
        "five trials in one program",
        "xla, 8 x 32",
    ]
    assert "left out: the host alone: 0s left" in "\n".join(report.lines(facts))


def test_an_interrupted_benchmark_shows_what_it_has(config, short_windows, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr(extras, "host", interrupted)
    monkeypatch.setitem(sys.modules, "torch", None)
    facts = suite.measure(config, 100)
    assert facts["interrupted"] == signal.SIGTERM
    assert facts["tokens_per_s"] > 0 and facts["host"] is facts["trials"] is None
    assert facts["left_out"][-1] == ("the rest", "interrupted")
    assert "left out: the rest: interrupted" in report.lines(facts)


def test_a_median_of_unstable_rounds_is_not_quoted():
    ratio = {"median": 2.0, "min": 1.0, "max": 4.0, "rounds": 5}
    assert report._ratio(ratio) == "unstable, 1.00 to 4.00, 5 rounds"
    steady = report._ratio(ratio | {"min": 1.8, "max": 2.2})
    assert steady == "2.00 (1.80 to 2.20, 5 rounds)"


def test_ratios_by_hand():
    assert timing.ratios([2, 3, 8], [1, 2, 2]) == {
        "median": 2,
        "min": 1.5,
        "max": 4,
        "rounds": 3,
    }


def test_trials_run_together_and_one_after_the_other(config, deadline, monkeypatch):
    seen = []

    def finetune(model, glue, train, scored, outputs, **_):
        seen.append((glue.trials, glue.trials_at_once, glue.epochs, len(train)))

    monkeypatch.setattr(extras, "finetune", finetune)
    # 5 x 16 rows of 32 tokens: at 6400 tokens/s a step takes 0.4 s.
    facts = extras.trials(config, 6400, deadline)
    assert facts["steps"] == 10
    assert seen == [(5, 5, 1, 160), (5, 1, 1, 160)] * 4


def test_made_up_rows_have_lengths(config):
    rows = extras.random_rows(config, 300)
    assert isinstance(rows, Encoded)
    lengths_N = (rows.tokens_NxL != PAD).sum(axis=1)
    assert lengths_N[0] == 32 and (lengths_N.min(), lengths_N.max()) == (8, 32)
    assert set(rows.labels_N) == {0, 1}
    after = np.arange(32) >= lengths_N[:, None]
    assert (rows.tokens_NxL[after] == PAD).all()


def test_the_idle_step_has_the_real_ones_results_and_changes_nothing(config, step):
    state = step.state
    before = jax.tree.map(np.asarray, state)
    [tokens_BxL] = step.random_batches(1)
    real = train_step.build(config)
    shapes = jax.eval_shape(real.function, state, tokens_BxL, np.float32(0))
    idle = extras.idle_step(real).function
    after, metrics = idle(state, tokens_BxL, np.float32(0))
    expected = {name: (x.shape, x.dtype) for name, x in shapes[1].items()}
    assert {name: (x.shape, x.dtype) for name, x in metrics.items()} == expected
    assert bool(metrics["finite"]) and after.step == before.step + 1
    for a, b in zip(
        jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_script_writes_json_and_refuses_bad_flags(monkeypatch, tmp_path, capsys):
    script = runpy.run_path("scripts/benchmark.py")["measure"]
    seen, facts = [], {"mfu": 0.5, "interrupted": None}
    monkeypatch.setattr(
        suite, "measure", lambda config, minutes: seen.append(minutes) or facts
    )
    monkeypatch.setattr(report, "lines", lambda facts: [f"MFU {facts['mfu']}"])
    path = tmp_path / "b.json"
    script([*TINY_FLAGS, f"--json={path}", "--minutes=0.5"])
    script(TINY_FLAGS)
    assert seen == [0.5, 8.0]
    assert json.loads(path.read_text()) == facts
    assert "MFU 0.5" in capsys.readouterr().out
    for flag in (
        "--minutes=0",
        "--minutes=soon",
        f"--json={tmp_path}/no/b",
        f"--json={tmp_path}",
    ):
        with pytest.raises(UserError, match=flag.split("=")[0]):
            script([*TINY_FLAGS, flag])
    assert len(seen) == 2
    facts["interrupted"] = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        script([*TINY_FLAGS, f"--json={path}"])
    assert json.loads(path.read_text()) == facts


def test_a_gpu_config_needs_a_gpu():
    from cramjax.config import load

    with pytest.raises(UserError, match=r"pass --config\.platform=any"):
        suite.measure(load("configs/h200.py"), 1)


def test_what_other_programs_use_is_told_from_ones_own():
    before = report.processors()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(1.5)
    fraction, middle = report.others_fraction(before), report.processors()
    other.kill()
    assert fraction * (middle[0] - before[0]) > 0.5
    start = time.process_time()
    while time.process_time() < start + 0.5:
        pass
    assert report.processors()[2] - middle[2] >= 0.4
    other.wait()


@needs_torch
def test_the_peer_is_the_same_model(step, deadline, short_windows, monkeypatch):
    """Also where there is no compiler for torch.compile."""
    from bench import peer

    def without_compiler(function):
        def fail(*_):
            raise RuntimeError("InvalidCxxCompiler")

        return fail

    monkeypatch.setattr(importlib.import_module("torch"), "compile", without_compiler)
    step.run(step.random_batches(5))
    facts = peer.compare(step, deadline)
    assert facts["loss"] == pytest.approx(facts["our_loss"], abs=1e-5)
    assert facts["gradient_norm"] == pytest.approx(facts["our_gradient_norm"], rel=1e-4)
    assert facts["products_over_formula"] == 1
    assert not facts["compiled"]


@needs_torch
def test_another_model_is_not_a_peer(step, deadline, monkeypatch):
    from bench import peer

    joined = peer.joined
    monkeypatch.setattr(  # gate and value in the wrong order
        peer, "joined", lambda ours, *names: joined(ours, *sorted(names)[::-1])
    )
    step.run(step.random_batches(20))
    with pytest.raises(UserError, match="it is another model: the loss of our weights"):
        peer.compare(step, deadline)


@needs_torch
def test_the_peer_learns_and_masks(step):
    import torch
    from bench.peer import Peer

    there = Peer(step.config, step.state.params, "cpu")
    [batch] = there.prepared(step.random_batches(1))
    seen = []
    there.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    start = there.run([batch] * 2)
    (tokens_BxL, positions_BxP, targets_BxP), second = seen
    assert positions_BxP.shape == (4, 8)  # a quarter of 32
    assert all(len(set(row.tolist())) == 8 for row in positions_BxP)
    picked = tokens_BxL.gather(1, positions_BxP)
    assert (picked[:, :6] == MASK).all()  # and the seventh is random
    assert torch.equal(picked[:, 7:], targets_BxP[:, 7:])
    assert torch.equal(batch.gather(1, positions_BxP), targets_BxP)
    assert not torch.equal(positions_BxP, second[1])
    assert there.run([batch] * 40) < start - 0.5


@needs_torch
@pytest.mark.parametrize(
    "override",
    ["model.norm=rmsnorm", "objective.dropout=0.1", "optimizer.name=muon"],
)
def test_the_peer_is_of_one_architecture_and_recipe(data_dir, override):
    from bench import peer

    peer.require_supported(tiny_config(data_dir, *PLAIN))
    name, _, value = override.partition("=")
    with pytest.raises(UserError, match=f"it has no {name}='?{value}"):
        peer.require_supported(tiny_config(data_dir, *PLAIN, override))


def test_wrong_numbers_are_not_timed(config, step, deadline, monkeypatch):
    monkeypatch.setattr(stepping, "HALF_TOLERANCE", 0.0)
    with pytest.raises(UserError, match="in bfloat16 and .* in float32, more than 0.0"):
        stepping.check(step, deadline)
    losses = iter(range(1000))
    monkeypatch.setattr(step, "run", lambda batches: [float(next(losses))])
    with pytest.raises(UserError, match=r"from 0\.000 to 47\.000: it does not learn"):
        stepping.check(step, deadline)


def test_a_config_that_does_not_fit_is_an_error(config, monkeypatch):
    def full(config):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")

    monkeypatch.setattr(suite, "TrainingStep", full)
    with pytest.raises(UserError, match="config.micro_batch is 4: too much for the"):
        suite.measure(config, 100)


def test_what_fails_is_left_out():
    def fail():
        raise RuntimeError("out of\nmemory")

    deadline = Deadline(100)
    assert deadline.attempt("a", 1, lambda: 5) == 5
    assert deadline.attempt("b", 1, fail) is None
    assert deadline.attempt("c", 1e3, fail) is None
    assert deadline.left_out == [
        ("b", "RuntimeError: out of memory"),
        ("c", "100s left, about 1000s needed"),
    ]


def test_mfu_energy_and_memory_by_hand(config, deadline, short_windows, monkeypatch):
    peaks, joules = iter([100, 150]), iter([5.0, 8.0])
    monkeypatch.setattr(stepping, "peak_memory_bytes", lambda: next(peaks))
    card = CARDS["h200"]._replace(peak_tflops=0.001)  # 10^9 FLOP/s
    monkeypatch.setattr(monitor, "card", lambda: card)
    monkeypatch.setattr(
        monitor, "read_gpu", lambda: dataclasses.replace(UNKNOWN, energy_j=next(joules))
    )
    monkeypatch.setattr(stepping, "alternate", lambda *_: {"": [2.0, 4.0]})
    step = TrainingStep(variant(config, "xla", 4))
    monkeypatch.setattr(step, "window", lambda: [None] * 10)
    row = step.measure(deadline)
    # Windows of 10 x 4 x 32 tokens in 2 and 4 seconds.
    assert row["windows_tokens_per_s"] == [640, 320]
    flops = train_flops_per_token(step.config.model, 0.25)
    assert row["mfu"] == pytest.approx(480 * flops / 1e9)
    assert row["joules_per_million_tokens"] == pytest.approx(3 / 2560 * 1e6)
    assert row["gpu"]["energy_j"] == 8
    assert (row["memory_bytes"], row["memory_from"]) == (150, "device")


def test_every_micro_batch_is_an_update(data_dir):
    ramp = ("batch.ramp_share=0.0", "batch.sequences=13", *PLAIN)
    step = TrainingStep(variant(tiny_config(data_dir, *ramp), "xla", 4))
    step.run(step.random_batches(2))
    assert step.state.accumulate == 1 and step.state.opt_state.gradient_step == 2


def test_sides_alternate_until_the_time_is_used(monkeypatch):
    seconds, ran = [0.0], []

    def side(name, takes):
        def work():
            ran.append(name)
            seconds[0] += takes

        return work

    monkeypatch.setattr(timing.time, "monotonic", lambda: seconds[0])
    deadline = Deadline(10)
    found = timing.alternate({"a": side("a", 1), "b": side("b", 2)}, 5, deadline)
    # Three rounds of 3 s; a fourth one would end after the 10th second.
    assert ran == ["a", "b"] * 3
    assert found == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert deadline.left_s == 1

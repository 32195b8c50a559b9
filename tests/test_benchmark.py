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
from bench import extras, peer, report, suite, timing
from bench import step as stepping
from bench.step import TrainingStep, variant
from bench.suite import Variants
from bench.timing import Deadline
from conftest import tiny_config

from cramjax.data.tokenizer import MASK, PAD
from cramjax.device import monitor, tuning
from cramjax.device.cards import CARDS
from cramjax.device.monitor import GpuStats
from cramjax.errors import UserError
from cramjax.glue.data import Encoded
from cramjax.model.flops import train_flops_per_token
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
    "--config=configs/quickstart.py",
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
    monkeypatch.setattr(peer, "ROUNDS", 2)
    monkeypatch.setattr(extras, "TRIALS_S", 0.02)
    monkeypatch.setattr(extras, "LOOP_S", 1.0)
    monkeypatch.setattr(extras, "READ_S", 0.02)
    monkeypatch.setattr(suite, "LADDER", (2,))


def test_the_whole_benchmark(config, short_windows, monkeypatch, capsys):
    if HAS_TORCH:  # compiling takes half a minute
        monkeypatch.setattr(importlib.import_module("torch"), "compile", lambda f: f)
    facts = json.loads(json.dumps(suite.measure(config, 100)))
    assert [row["micro_batch"] for row in facts["variants"]] == [4, 8]
    assert facts["tokens_per_s"] == max(r["tokens_per_s"] for r in facts["variants"])
    assert facts["mfu"] is None
    if HAS_TORCH:
        assert facts["ratio_to_pytorch"] == facts["pytorch"]["ratio"]["median"] > 0
        # 12 sequences in the final batch are three micro-batches of 4.
        assert facts["pytorch"]["accumulating"]["micro_batches"] == 3
    else:
        assert facts["ratio_to_pytorch"] is None
        assert facts["pytorch"] == {"skipped": "torch is not installed"}
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
    assert facts["left_out"] == []
    text = "\n".join(report.lines(facts))
    with_torch = (
        "PyTorch, 4 x 32 ",
        "speed over PyTorch's (torch.compile; xla, micro-batch 4)",
        "with 3 micro-batches in an update",
    )
    for part in (
        "xla, 4 x 32 ",
        "xla, 8 x 32 ",
        "reading batches ",
        "the loop alone, 128 x 32 ",
        "not measured",
        "time of 5 fine-tuning trials",
        *(with_torch if HAS_TORCH else ("PyTorch: skipped, torch is not installed",)),
    ):
        assert part in text, part


def test_without_time_the_first_variant_is_measured_and_the_rest_is_named(
    config, short_windows, monkeypatch
):
    # The micro-batch was left to the device.
    monkeypatch.setattr(tuning, "choose", lambda *_: config)
    monkeypatch.setattr(peer, "unsupported", lambda _: "")  # torch may be missing
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
    monkeypatch.setattr(peer, "unsupported", lambda _: "not now")
    facts = suite.measure(config, 100)
    assert facts["interrupted"] == signal.SIGTERM
    assert facts["tokens_per_s"] > 0 and facts["host"] is facts["trials"] is None
    assert facts["left_out"] == [("the rest", "interrupted")]
    assert "left out: the rest: interrupted" in report.lines(facts)


def test_a_torch_that_cannot_be_imported_is_no_reason_to_stop(
    config, tmp_path, monkeypatch
):
    (tmp_path / "torch.py").write_text("raise OSError('undefined symbol: cudnn')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    importlib.invalidate_caches()
    why = "torch cannot be imported (undefined symbol: cudnn)"
    assert peer.unsupported(config) == why


def test_what_other_programs_use_is_told_from_ones_own():
    before = report.Processors.now()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(1.5)
    share, middle = report.others_fraction(before), report.Processors.now()
    other.kill()
    assert share * (middle.elapsed_s - before.elapsed_s) > 0.5
    start = time.process_time()
    while time.process_time() < start + 0.5:
        pass
    assert report.Processors.now().own_s - middle.own_s >= 0.4
    other.wait()


def test_a_median_of_unsteady_rounds_is_not_quoted():
    ratio = {"median": 2.0, "min": 1.0, "max": 4.0, "rounds": 5}
    assert report._ratio(ratio) == "unsteady, 1.00 to 4.00, 5 rounds"
    steady = report._ratio(ratio | {"min": 1.8, "max": 2.2})
    assert steady == "2.00 (1.80 to 2.20, 5 rounds)"


def test_what_runs_out_of_memory_is_left_out(config, short_windows, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")

    monkeypatch.setattr(extras, "host", full)
    monkeypatch.setattr(peer, "unsupported", lambda _: "not now")
    monkeypatch.setattr(extras, "trials", lambda *_: None)
    monkeypatch.setattr(suite, "LADDER", ())
    facts = suite.measure(config, 100)
    [left_out] = facts["left_out"]
    why = "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert left_out == ("the host alone", why)
    assert facts["host"] is None and facts["tokens_per_s"] > 0
    assert "PyTorch: skipped, not now" in report.lines(facts)


@needs_torch
def test_the_peer_is_the_same_model(step, deadline, short_windows, monkeypatch):
    """Also where there is no compiler for torch.compile."""

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
    from bench import torch_peer

    joined = torch_peer._joined
    monkeypatch.setattr(  # gate and value in the wrong order
        torch_peer, "_joined", lambda ours, *names: joined(ours, *sorted(names)[::-1])
    )
    step.run(step.random_batches(20))
    facts = peer.compare(step, deadline)
    assert facts["skipped"].startswith("it is another model: the loss of our weights")
    assert "ratio" not in facts


@needs_torch
def test_the_peer_learns_masks_and_accumulates(config):
    import torch
    from bench.torch_peer import Peer

    first = TrainingStep(variant(config, "xla", 4))
    there = Peer(first.config, first.state.params, "cpu")
    [batch] = there.prepared(first.random_batches(1))
    seen = []
    there._model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    before = there._model.word.weight.detach().clone()
    start = there.run([batch] * 3, accumulate=3)
    assert not torch.equal(before, there._model.word.weight)
    (tokens_BxL, positions_BxP, targets_BxP), second = seen[0], seen[1]
    assert positions_BxP.shape == (4, 8)  # a quarter of 32
    assert all(len(set(row.tolist())) == 8 for row in positions_BxP)
    picked = tokens_BxL.gather(1, positions_BxP)
    assert (picked[:, :6] == MASK).all()  # and the seventh is random
    assert torch.equal(picked[:, 7:], targets_BxP[:, 7:])
    assert torch.equal(batch.gather(1, positions_BxP), targets_BxP)
    assert not torch.equal(positions_BxP, second[1])
    before = there._model.word.weight.detach().clone()
    there.run([batch] * 2, accumulate=3)  # an update is not due yet
    assert torch.equal(before, there._model.word.weight)
    assert there.run([batch] * 100) < start - 0.5


def test_without_torch_the_peer_is_skipped(step, deadline, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peer.compare(step, deadline) == {"skipped": "torch is not installed"}


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model.norm=rmsnorm", "it has no model.norm='rmsnorm'"),
        ("model.dtype=float16", "it has no model.dtype='float16'"),
        ("objective.dropout=0.1", "it has no objective.dropout=0.1"),
        ("optimizer.name=muon", "it has no optimizer.name='muon'"),
        ("averaging.ema_decay=0.9", "it has no averaging.ema_decay=0.9"),
    ],
)
def test_the_peer_is_of_one_architecture_and_recipe(data_dir, override, why):
    assert peer.unsupported(tiny_config(data_dir, *PLAIN, override)) == why


def test_wrong_numbers_are_not_timed(config, step, deadline, monkeypatch):
    monkeypatch.setattr(stepping, "HALF_TOLERANCE", 0.0)
    with pytest.raises(UserError, match="in bfloat16 and .* in float32, more than 0.0"):
        Variants(config, deadline).measure(4)
    losses = iter(range(1000))
    monkeypatch.setattr(step, "run", lambda batches: [float(next(losses))])
    with pytest.raises(UserError, match=r"from 0\.000 to 47\.000: it does not learn"):
        stepping.check(step, deadline)


def test_a_variant_that_does_not_fit_is_left_out(config, deadline, monkeypatch):
    def full(config):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")

    monkeypatch.setattr(suite, "TrainingStep", full)
    found = Variants(config, deadline)
    with pytest.raises(UserError, match="config.micro_batch is 4: too much for the"):
        found.measure(4)
    found.rows.append({"tokens_per_s": 1.0})
    found.measure(8)
    assert deadline.left_out == [("xla, 8 x 32", "RESOURCE_EXHAUSTED: out of memory")]


def test_an_attention_that_cannot_be_measured_is_tried_once(
    config, deadline, monkeypatch
):
    monkeypatch.setattr(tuning, "attentions", lambda config: ["xla", "cudnn"])
    monkeypatch.setattr(suite, "TrainingStep", lambda config: config)
    monkeypatch.setattr(suite, "check", lambda config, deadline: {})
    monkeypatch.setattr(
        suite,
        "time_step",
        lambda config, _: {"row": (config.model.attention, config.micro_batch)},
    )
    found = Variants(config, deadline)
    found.measure(4)
    found.measure(8)
    assert [row["row"] for row in found.rows] == [("xla", 4), ("xla", 8)]
    [(what, why)] = deadline.left_out
    assert what == "cudnn, 4 x 32" and "with model.dtype='float32'" in why


def test_mfu_and_energy_by_hand(step, deadline, short_windows, monkeypatch):
    card = CARDS["h200"]._replace(peak_tflops=0.001)  # 10^9 FLOP/s
    monkeypatch.setattr(monitor, "card", lambda: card)
    readings = iter(
        dataclasses.replace(UNKNOWN, energy_j=joules) for joules in (5.0, 8.0)
    )
    monkeypatch.setattr(monitor, "read_gpu", lambda: next(readings))
    monkeypatch.setattr(suite, "WINDOWS", 2)
    monkeypatch.setattr(
        suite, "alternate", lambda sides, rounds, deadline: {"": [2.0, 4.0]}
    )
    monkeypatch.setattr(step, "window", lambda: [None] * 10)
    row = suite.time_step(step, deadline)
    # Windows of 10 x 4 x 32 tokens in 2 and 4 seconds.
    assert row["windows_tokens_per_s"] == [640, 320]
    flops = train_flops_per_token(step.config.model, 0.25)
    assert row["mfu"] == pytest.approx(480 * flops / 1e9)
    assert row["joules_per_million_tokens"] == pytest.approx(3 / 2560 * 1e6)
    assert row["gpu"]["energy_j"] == 8


def test_the_devices_own_peak_counts_if_it_rose(config, monkeypatch):
    peak = 100
    monkeypatch.setattr(stepping, "peak_memory_bytes", lambda: peak)
    step = TrainingStep(variant(config, "xla", 4))
    planned, whose = step.memory()
    assert whose == "compiler"
    assert planned > 4 * 4 * sum(x.size for x in jax.tree.leaves(step.state.params))
    peak = 150
    assert step.memory() == (150, "device")


def test_a_step_is_an_update_or_a_part_of_the_final_batch(data_dir):
    config = variant(
        tiny_config(data_dir, "batch.ramp_share=0.0", "batch.sequences=13"), "xla", 4
    )
    step = TrainingStep(config)
    assert step.accumulated == 4
    batches = step.random_batches(2)
    for last, count in ((False, 1), (True, 4)):
        step.run(batches[:1] * count, last=last)
        assert step.state.accumulate == count
    assert variant(config, "xla", 32).batch.sequences == 32


def test_sides_alternate_until_the_time_is_used():
    seconds, ran = [0.0], []

    def side(name, takes):
        def work():
            ran.append(name)
            seconds[0] += takes

        return work

    deadline = Deadline(10, now=lambda: seconds[0])
    sides = {"a": side("a", 1), "b": side("b", 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "monotonic", lambda: seconds[0])
        found = timing.alternate(sides, 5, deadline)
    # Three rounds of 3 s; a fourth one would end behind the 10th second.
    assert ran == ["a", "b"] * 3
    assert found == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert deadline.left_s == 1
    assert not deadline.allows("more", 2) and deadline.allows("less", 1)
    assert deadline.left_out == [("more", "1s left, about 2s needed")]
    assert timing.alternate(sides, 5, deadline)["a"] != []


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
    real = train_step.build(config).function
    shapes = jax.eval_shape(real, state, tokens_BxL, np.float32(0))
    after, metrics = extras.idle_step(config)(state, tokens_BxL, np.float32(0))
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

import importlib.util
import json
import types

import jax
import pytest
from conftest import run_script
from test_architecture import row_config

from cramjax import plan as planning
from cramjax.device import cards
from cramjax.errors import UserError
from cramjax.hlo import Kernel
from cramjax.model.flops import train_flops_per_token
from cramjax.plan import by_source, plan, source
from cramjax.training import train_step

has_plugin = any(
    importlib.util.find_spec(f"jax_{name}_plugin") for name in ("cuda12", "cuda13")
)
needs_plugin = pytest.mark.skipif(
    not has_plugin, reason="the extra cuda12 or cuda13 is not installed"
)
LAYER = "jvp(MaskedLM)/MaskedLM.encode/layers_11"


@pytest.fixture(scope="module")
def params():
    config = row_config("crammed-bert")
    return jax.eval_shape(lambda: train_step.init_state(config)).params


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        (f"jit(step)/{LAYER}/attention/query/dot", ("layers/attention", "forward")),
        (
            f"jit(step)/transpose({LAYER.replace('/', ')/', 1)}/ffn_norm/mul",
            ("layers/ffn_norm", "backward"),
        ),
        (f"jit(step)/{LAYER}/add", ("layers", "forward")),
        (
            "jit(step)/jvp(MaskedLM)/MaskedLM.encode/embedding/jit(_take)/gather",
            ("embedding", "forward"),
        ),
        (
            "jit(step)/jvp(MaskedLM)/MaskedLM.logits/embedding.logits/convert",
            ("head", "forward"),
        ),
        ("jit(step)/transpose(jvp())/mul", ("loss", "backward")),
        ("jit(step)/cond/branch_1_fun/mul", ("optimizer", "update")),
        ("", ("optimizer", "update")),
    ],
)
def test_sources(params, op_name, expected):
    assert source(op_name, params) == expected


def test_traffic_is_summed_without_products(params):
    kernels = [
        Kernel("jit(step)/add", 5, 0, 0),
        Kernel(f"jit(step)/{LAYER}/ffn/gate/dot", 1000, 7, 0),
        Kernel(f"jit(step)/{LAYER}/ffn/mul", 20, 0, 0),
        Kernel(f"jit(step)/{LAYER.replace('11', '2')}/ffn/mul", 3, 0, 0),
    ]
    found = by_source(kernels, params)
    assert list(found) == ["layers/ffn", "optimizer"]
    assert found["layers/ffn"] == {"forward": 23, "backward": 0, "update": 0}
    assert found["optimizer"]["update"] == 5


def test_seconds_are_those_of_the_narrower_limit():
    card = cards.CARDS["a4000"]
    product = Kernel("", 448, 10**12, 0)  # little traffic
    copy = Kernel("", 448 * 10**9, 1, 0)  # little to compute
    found = planning.seconds([product, copy], card)
    assert found == pytest.approx(1 / (0.75 * 88.45) + 1 / 0.9)


class FakeCompiled:
    """A micro-step of a product and a sum; its temporaries grow with the batch."""

    squeezed_from = 10**6  # the micro-batch from which on a product comes twice

    def __init__(self, config):
        self._rows, self._dtype = config.micro_batch * 128, config.model.dtype
        self._squeezed = config.micro_batch >= self.squeezed_from

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=2 * 10**9,
            temp_size_in_bytes=self._rows * 10**6,
            output_size_in_bytes=2 * 10**9 + 7,
            alias_size_in_bytes=2 * 10**9,
        )

    def as_text(self):
        kind = {"bfloat16": "bf16", "float32": "f32"}[self._dtype]
        a, b = f"{kind}[{self._rows},768]", f"{kind}[768,1000]"
        c = f"f32[{self._rows},1000]"
        scope = "jit(micro_step)/jvp(MaskedLM)/MaskedLM.encode/layers_0/ffn"
        twice = f"  %dot.1.remat2 = {c} negate(%dot.1)\n" if self._squeezed else ""
        return f"""HloModule fake
ENTRY %main (a: {a}, b: {b}) -> {c} {{
  %a = {a} parameter(0)
  %b = {b} parameter(1)
  %dot.1 = {c} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
{twice}  ROOT %add.1 = {c} add(%dot.1, %dot.1), metadata={{op_name="{scope}/add"}}
}}"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "described_device", lambda card: None)
    monkeypatch.setattr(planning, "CALIBRATION", tmp_path / "calibration.json")
    planning.CALIBRATION.write_text("{}")
    monkeypatch.setattr(planning, "compile_for", lambda c, device: FakeCompiled(c))
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.55")


def test_a_plan_of_a_micro_step_worked_out_by_hand(fake, said):
    config = row_config("crammed-bert", "micro_batch=32", "batch.sequences=4096")
    facts = plan(config, "a4000", ())
    # 55 % of 16 GiB, less 2 % and then 5 %, is 8.80 GB: 2 GB and 0.128 GB a
    # sequence, up to 53.
    assert facts["usable_bytes"] == int(0.98 * 2**34 * 0.55 * 0.95)
    assert facts["largest_micro_batch"] == 48
    assert [n for n, row in facts["micro_batches"].items() if row["fits"]] == [32, 48]
    assert said[0] == "compiling for the RTX A4000, micro-batch 32 ..."
    assert len(said) == len(facts["micro_batches"])
    row = facts["micro_batches"][48]
    assert row["total_bytes"] == 2 * 10**9 + 48 * 128 * 10**6 + 7
    # A sum of two [tokens, 1000] in float32, and its result.
    assert row["traffic_bytes_per_token"] == 3 * 4000
    assert facts["traffic_bytes_per_token"] == {
        "layers/ffn": {"forward": 3 * 4000.0, "backward": 0.0, "update": 0.0}
    }
    product_flops = 2 * 768 * 1000
    formula = train_flops_per_token(config.model, config.objective.mask_rate)
    assert row["flops_over_formula"] == pytest.approx(product_flops / formula)
    # The product takes longer to compute than to move, 1536 + 4000 and the weights.
    seconds = product_flops / 0.75 / 88.45e12 + 3 * 4000 / 0.9 / 448e9
    assert 1 / row["tokens_per_s"] == pytest.approx(seconds)
    assert row["mfu"] == pytest.approx(row["tokens_per_s"] * formula / 88.45e12)
    assert row["tokens"] == pytest.approx(24 * 3600 * row["tokens_per_s"])
    assert facts["calibration"] is None
    measured = {"h200": {"factor": 0.7}, "a4000": {"factor": 0.5}}
    planning.CALIBRATION.write_text(json.dumps(measured))
    half = plan(config, "a4000", (48,))
    assert list(half["micro_batches"]) == [32, 48]
    speed = half["micro_batches"][48]["tokens_per_s"]
    assert (half["calibration"], speed) == (0.5, row["tokens_per_s"] / 2)


def test_what_the_compiler_had_to_squeeze_is_not_said_to_fit(fake, monkeypatch):
    monkeypatch.setattr(FakeCompiled, "squeezed_from", 48)
    config = row_config("crammed-bert", "micro_batch=16")
    facts = plan(config, "a4000", ())
    assert facts["largest_micro_batch"] == 32
    assert facts["micro_batches"][48]["recomputes"]
    assert facts["micro_batches"][48]["fits"]
    assert not facts["micro_batches"][32]["recomputes"]
    # XLA repeats cheap things, too, when there is room.
    monkeypatch.setattr(FakeCompiled, "squeezed_from", 1)
    facts = plan(config, "a4000", (24,))
    assert [row["recomputes"] for row in facts["micro_batches"].values()] == [
        False,
        True,
    ]


def test_what_is_left_to_the_card_is_planned_and_said(fake):
    flags = "micro_batch=0", "model.attention=auto", "batch.sequences=4096"
    config = row_config("crammed-bert", *flags)
    facts = plan(config, "a4000", ())
    assert facts["largest_micro_batch"] == facts["traffic_micro_batch"] == 48
    assert facts["notes"] == [
        "model.attention=auto is decided on the card; this is cudnn's."
    ]
    facts = plan(config, "rtx2080ti", (32,))
    assert list(facts["micro_batches"]) == [32]
    assert facts["notes"][0].endswith("this is xla's.")


def test_too_large_a_micro_batch_is_seen_before_anything_is_compiled(fake, said):
    message = (
        r"config\.batch\.sequences is 64: must be 65 or more, for --micro_batches=6,65"
    )
    with pytest.raises(UserError, match=message):
        config = row_config("crammed-bert", "micro_batch=16", "batch.sequences=64")
        plan(config, "a4000", (6, 65))
    assert said == []


def test_what_the_numbers_leave_out_is_said(fake):
    flags = "micro_batch=32", "model.dtype=float32"
    flags += ("curriculum.lengths=(64,128)", "curriculum.starts=(0.0,0.5)")
    facts = plan(row_config("crammed-bert", *flags), "h200", (32,))
    assert facts["micro_batches"][32]["tokens_per_s"] is None
    assert facts["notes"] == [
        "100% of the products' FLOPs are in float32. The peak is one of 16-bit "
        "products: no speed is given.",
        "The micro-step is that of whole blocks; curriculum.lengths=(64, 128) has "
        "shorter sequences, too.",
    ]


def test_memory_fraction(monkeypatch):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert planning.memory_fraction() == 0.75
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.92")
    assert planning.memory_fraction() == 0.92


def test_cards_are_told_apart_by_what_the_vendor_says():
    for name in ("rtx3090", "rtx4090", "a100", "h100", "h200", "a4000", "a6000"):
        assert cards.CARDS[name].has_bfloat16
    turing = cards.CARDS["rtx2080ti"]
    assert not turing.has_bfloat16
    text = planning.description(turing)
    assert "cuda_compute_capability { major: 7 minor: 5 }" in text
    assert "shared_memory_per_block_optin: 65536" in text
    assert "l2_cache_size: 5767168" in text
    text = planning.description(cards.CARDS["h200"])
    assert "shared_memory_per_block_optin: 232448" in text  # 227 KiB
    assert "memory_bandwidth: 4800000000000" in text


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "no card: pass --card=a4000, or another of rtx2080ti, a4000"),
        (("--card=A4000", "--json=no/p.json"), "--json=no/p.json: there is no folder"),
        (("--card=a4001",), "--card=a4001: must be one of rtx2080ti, a4000"),
        (
            ("--card=a4000", "--micro_batches=64,x"),
            "--micro_batches=64,x: must be like 64,96,128",
        ),
        (
            ("--card=rtx2080ti", "--config.model.attention=cudnn"),
            "config.model.attention is 'cudnn': must be 'xla' on the RTX 2080 Ti",
        ),
    ],
)
def test_mistakes_are_one_line(flags, line, script_error, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the script sets it, too
    error = script_error("plan.py", "--config=configs/a4000.py", *flags)
    assert error.startswith(line)


@pytest.mark.skipif(has_plugin, reason="the extra cuda12 or cuda13 is installed")
def test_without_the_plugin_the_extra_is_named():
    with pytest.raises(UserError, match=r"not a GPU: pip install -e \"\.\[cuda12\]"):
        planning.described_device(cards.CARDS["a4000"])


@needs_plugin
def test_a_small_model_on_a_card_that_is_not_there(tmp_path):
    path = tmp_path / "plan.json"
    flags = ["--config=configs/small.py", "--card=h200", f"--json={path}"]
    flags += ["--config.model.dtype=bfloat16", "--config.model.layers=1"]
    flags += ["--micro_batches=16"]
    done = run_script("plan.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "an estimate, not calibrated on this card" in done.stdout
    facts = json.loads(path.read_text())
    rows = facts["micro_batches"]
    assert list(rows) == ["16", "64"]
    assert facts["largest_micro_batch"] == 64
    for row in rows.values():
        assert row["fits"]
        assert row["flops_over_formula"] == pytest.approx(1, abs=0.02)
        assert row["tokens"] == 6_000_000
        assert 0 < row["mfu"] < 0.75
    # Parameters, gradients and two moments in float32; tokens in 16 bits; counters.
    parameters = 4096 * 128 + 4 * 128**2 + 3 * 128 * 256 + 4 * 2 * 128 + 1
    state_bytes = rows["16"]["argument_bytes"] - 16 * 32 * 2
    assert 16 * parameters < state_bytes < 16 * parameters + 100
    assert rows["64"]["temporary_bytes"] > 1.5 * rows["16"]["temporary_bytes"]
    traffic = facts["traffic_bytes_per_token"]
    assert {"layers/attention", "layers/ffn", "loss", "optimizer"} <= traffic.keys()
    total = sum(sum(row.values()) for row in traffic.values())
    assert total == pytest.approx(rows["64"]["traffic_bytes_per_token"])


@needs_plugin
def test_a_card_without_bfloat16_is_given_no_speed(tmp_path):
    def facts(dtype):
        path = tmp_path / f"{dtype}.json"
        flags = ["--config=configs/small.py", "--card=rtx2080ti"]
        flags += [f"--config.model.dtype={dtype}", "--micro_batches=64"]
        flags += ["--config.model.layers=1", f"--json={path}"]
        done = run_script("plan.py", *flags)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(path.read_text())

    found = facts("bfloat16")
    assert found["micro_batches"]["64"]["tokens_per_s"] is None
    assert found["notes"][0].startswith(
        "100% of the products' FLOPs are in float32: the RTX 2080 Ti has no bfloat16"
    )
    found = facts("float16")
    assert found["micro_batches"]["64"]["tokens_per_s"] > 0
    assert found["notes"] == []

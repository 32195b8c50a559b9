import json

import pytest
from conftest import run_script
from test_architecture import row_config

from cramjax.describe import describe, on_card
from cramjax.device.cards import CARDS


def test_crammed_bert_in_the_papers_numbers():
    facts = describe(row_config("crammed-bert", "objective.mask_rate=0.25"), 0.367)
    assert facts["parameters"] == {
        "embedding": 25_165_824 + 1,
        "attention": 16 * 2_359_296,
        "feed-forward": 16 * 3_538_944,
        "norms": 52_224,
    }
    flops = facts["flops_per_token"]
    assert sum(flops.values()) == 622_854_144
    assert flops["attention products"] == 12 * 16 * 128 * 768
    state = facts["state_bytes"]
    assert state["parameters"] == state["accumulated gradients"] == 4 * 119_589_889
    assert state["averages"] == 4  # off: a counter
    assert state["optimizer"] == pytest.approx(8 * 119_589_889, abs=100)
    # arXiv 2212.14034, table 1: 4.5e9 tokens a day at 36.7 % of the peak.
    assert facts["cards"]["a4000"]["tokens"] == pytest.approx(4.5e9, rel=0.01)
    assert facts["cards"]["a4000"]["hours"] == pytest.approx(24)
    assert facts["cards"].keys() == CARDS.keys()


def test_parts_of_a_model_that_has_them_all():
    config = row_config("original-bert", "model.embedding_width=128")
    parameters = describe(config, 0.4)["parameters"]
    # Head: dense to 128 with its bias, and the decoder's bias; its norm is a norm.
    assert parameters["head"] == 768 * 128 + 128 + 32768
    word, positions, projection = 32768 * 128, 128 * 128, 128 * 768 + 768
    assert parameters["embedding"] == word + positions + projection
    assert parameters["norms"] == 2 * (128 + 24 * 768 + 128)


def test_cudnn_need_not_be_there():
    facts = [
        describe(row_config("crammed-bert", f"model.attention={name}"), 0.4)
        for name in ("cudnn", "xla")
    ]
    assert facts[0] == facts[1]


def test_averages_take_memory():
    config = row_config(
        "crammed-bert", "averaging.ema_decay=0.999", "averaging.lawa_last=3"
    )
    state = describe(config, 0.4)["state_bytes"]
    assert state["averages"] == 4 * state["parameters"] + 4


def test_a_budget_of_tokens_becomes_hours():
    flags = "budget.hours=0", "budget.tokens=1000000000", "batch.ramp_share=0"
    config = row_config("crammed-bert", *flags)
    h200 = describe(config, 0.4)["cards"]["h200"]
    assert h200["tokens"] == 1_000_000_000
    seconds = h200["tokens"] / h200["tokens_per_s"]
    assert h200["hours"] == pytest.approx(seconds / 3600)
    assert h200["updates"] == pytest.approx(1e9 / (4096 * 128))


def test_updates_follow_the_ramp():
    def updates(ramp_share):
        flags = (
            "micro_batch=16",
            "batch.sequences=64",
            f"batch.ramp_share={ramp_share}",
        )
        flags += ("budget.hours=0", f"budget.tokens={micro_steps * 16 * 128}")
        config = row_config("crammed-bert", *flags)
        return on_card(config, CARDS["h200"], 1e5, 1e9)["updates"]

    micro_steps = 1200
    assert updates(0.0) == pytest.approx(micro_steps / 4)
    # Over the first 60 % of the budget 1, 2, 3, 4 micro-batches, 15 % each; then 4.
    per_step = 0.15 * (1 + 1 / 2 + 1 / 3 + 1 / 4) + 0.4 / 4
    assert updates(0.6) == pytest.approx(micro_steps * per_step, rel=1e-3)


def test_four_gpus_average_once_per_update():
    one, four, two = (
        describe(row_config("crammed-bert", f"devices={n}"), 0.4)["cards"]
        for n in (1, 4, 2)
    )
    size, update = 4 * 119_589_889, 4096 * 128
    for name, gbps in (("h200", 450), ("a4000", 31.5)):
        alone_s = update / one[name]["tokens_per_s"]
        seconds = update / four[name]["tokens_per_s"]
        assert seconds - alone_s / 4 == pytest.approx(1.5 * size / (gbps * 1e9))
        assert two[name]["tokens"] < four[name]["tokens"] < 4 * one[name]["tokens"]


def test_the_script_prints_a_table_and_writes_json(tmp_path, script_error):
    path = tmp_path / "facts.json"
    flags = ["--config=configs/ablations/architecture.py:modern", f"--json={path}"]
    flags.append("--config.devices=8")
    done = run_script("describe.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "120,179,712" in done.stdout
    assert "8 x H200: averaging the gradients takes 1.9 ms over NVLink" in done.stdout
    assert json.loads(path.read_text())["mfu"] == 0.4
    error = script_error("describe.py", *flags, "--mfu=40")
    assert error == "--mfu=40: must be in (0, 1]\n"

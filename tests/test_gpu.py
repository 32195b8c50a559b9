"""What a new card has to get right: the first part of scripts/check_gpu.py.

Without a GPU these are skipped, since other tests cover a CPU; CRAMJAX_CPU_FORM=1 runs
them there all the same, on a tiny model, but for those that need cuDNN or two devices.
"""

import dataclasses
import functools
import os

import jax
import numpy as np
import pytest
from bench.step import masked_rows
from conftest import start, tiny_config
from test_pretrain import stop_after
from test_train_step import tokens_of

from cramjax.device import tuning
from cramjax.glue import finetune
from cramjax.glue.data import Encoded
from cramjax.model.custom_vjp import cross_entropy
from cramjax.model.encoder import MaskedLM
from cramjax.training import pretrain, train_step

ON_GPU = jax.default_backend() == "gpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (ON_GPU or os.environ.get("CRAMJAX_CPU_FORM")),
        reason="there is no GPU; CRAMJAX_CPU_FORM=1 runs this on a CPU",
    ),
]
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="there is no GPU")
# Heads of 64 channels and blocks of 128 tokens, as in the recipe.
SIZE = (
    "micro_batch=16",
    "model.width=256",
    "model.ffn_width=1024",
    "model.layers=4",
    "model.heads=4",
    "model.vocab_size=4096",
    "model.max_length=128",
    "batch.sequences=48",
    "budget.tokens=65536",
)
SMALL = ("model.layers=1", "budget.tokens=2560", "data.max_chars=300000")


@pytest.fixture
def sized(data_dir):
    """Makes a config whose size suits the device."""

    def make(*overrides):
        size = SIZE if ON_GPU else SMALL
        size = (
            *size,
            "glue.tasks=()",
            "averaging.ema_decay=0",
            "averaging.lawa_last=0",
        )
        return tiny_config(data_dir, *size, *overrides)

    return make


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(model, params, masked):
    def loss_of(params):
        logits = MaskedLM(model).apply(
            {"params": params}, masked.tokens_BxL, masked.positions_BxP
        )
        return cross_entropy(logits, masked.targets_BxP)

    return jax.value_and_grad(loss_of)(params)


def with_model(config, **values):
    return dataclasses.replace(config.model, **values)


def assert_agree(found, expected, loss_nats, grads_fraction):
    """Compares losses, and gradients by the norm of their difference."""
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=loss_nats)
    both = zip(*(jax.tree.leaves(x[1]) for x in (found, expected)), strict=True)
    both = [(np.asarray(a), np.asarray(b)) for a, b in both]
    difference = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in both))
    norm = np.sqrt(sum(np.sum(b**2) for _, b in both))
    assert difference < grads_fraction * norm


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_agree_with_float32(sized, dtype):
    config = sized()
    params, masked = start(config)[0].params, masked_rows(config)
    with jax.default_matmul_precision("highest"):
        model = with_model(config, dtype="float32")
        exact = loss_and_grads(model, params, masked)
    rough = loss_and_grads(with_model(config, dtype=dtype), params, masked)
    assert_agree(rough, exact, loss_nats=1e-2, grads_fraction=0.02)


@needs_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_numbers_are_a_cpus(sized, dtype):
    config = sized()
    params, masked = start(config)[0].params, masked_rows(config)
    model = with_model(config, dtype=dtype)
    there = jax.device_put((params, masked), jax.devices("cpu")[0])
    with jax.default_matmul_precision("highest"):
        exact = loss_and_grads(with_model(config, dtype="float32"), *there)
        found = loss_and_grads(model, params, masked)
    close = dtype == "float32"
    assert_agree(found, exact, 1e-4 if close else 1e-2, 1e-3 if close else 0.02)


@pytest.mark.skipif(
    not tuning.has_cudnn(), reason="cuDNN's attention needs compute capability 8.0"
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_of_cudnn_and_of_xla_agree(sized, dtype):
    """Forward and backward, and it is cuDNN's kernels that run."""
    config = sized()
    params, masked = start(config)[0].params, masked_rows(config)
    xla, cudnn = (
        with_model(config, dtype=dtype, attention=name) for name in ("xla", "cudnn")
    )
    program = loss_and_grads.lower(cudnn, params, masked).compile().as_text()
    assert "__cudnn$fmhaSoftmaxBackward" in program
    found = loss_and_grads(cudnn, params, masked)
    assert_agree(found, loss_and_grads(xla, params, masked), 1e-2, 0.02)


def test_a_stopped_run_goes_on_to_the_same_losses(
    sized, corpus_of, tmp_path, monkeypatch
):
    config = sized("model.dtype=bfloat16")
    corpus = corpus_of(config)
    whole = pretrain.pretrain(config, corpus, tmp_path / "whole")[1]
    stop_after(11, config, corpus, tmp_path / "stopped", monkeypatch)
    resumed = pretrain.pretrain(config, corpus, tmp_path / "stopped")[1]
    assert resumed["micro_steps"] == whole["micro_steps"] > 11
    for name in ("train_loss", "held_out_loss"):  # a GPU adds up in any order
        assert resumed[name] == pytest.approx(whole[name], rel=1e-3)


@pytest.fixture
def corpus_of():
    from cramjax.data.prepare import prepare

    return prepare


KINDS = [("bfloat16", 3)]
if ON_GPU:
    KINDS += [("float16", 1), ("bfloat16", 1), ("float16", 3)]


@pytest.mark.parametrize(("dtype", "outputs"), KINDS)
def test_fine_tuning_in_16_bits(sized, dtype, outputs):
    """A classification and a regression: a text's first word says the label."""
    config = sized(f"model.dtype={dtype}", "glue.epochs=8", "glue.dropout=0.0")
    glue = dataclasses.replace(config.glue, trials=2, trials_at_once=2)
    tokens_NxL = tokens_of(config, 64).astype(np.uint16)[:, : glue.max_length]
    labels_N = np.arange(64) % 3
    tokens_NxL[:, 1:6] = 100 + labels_N[:, None]
    labels_N = labels_N.astype(np.int32 if outputs > 1 else np.float32)
    rows = Encoded(tokens_NxL, labels_N)
    model = dataclasses.replace(config.model, attention="xla")
    [outputs_TxNxC] = finetune.finetune(
        *(model, glue, rows, [rows], outputs),
        pretrained=start(config)[0].params,
        learning_rate=1e-2,
        seed=0,
    ).outputs
    assert outputs_TxNxC.shape == (2, 64, outputs)
    outputs_TxNxC = outputs_TxNxC.astype(np.float32)
    if outputs == 1:
        errors_TxN = outputs_TxNxC[..., 0] - labels_N
        assert np.mean(errors_TxN**2) < 0.5 * np.var(labels_N)
    else:
        assert np.mean(outputs_TxNxC.argmax(-1) == labels_N) > 0.9


def test_what_is_left_to_the_device_is_chosen_and_trains(sized, said):
    """micro_batch=0 and attention=auto."""
    config = sized("micro_batch=0", "model.attention=auto", "model.dtype=bfloat16")
    config = tuning.choose(config, train_step.build)
    assert config.micro_batch in range(1, config.batch.sequences + 1)
    assert config.model.attention in tuning.attentions(config)
    state, micro_step = start(config)
    tokens = tokens_of(config, config.micro_batch)
    found = []
    for _ in range(12):
        state, metrics = micro_step(state, tokens, np.float32(0.5))
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0]


def test_nothing_is_compiled_again_through_the_whole_ramp(sized):
    config = sized("model.dtype=bfloat16")
    state, micro_step = start(config)
    counts = set()
    for i in range(20):
        tokens = tokens_of(config, config.micro_batch, i)
        state, metrics = micro_step(state, tokens, np.float32(i / 20))
        counts.add(int(metrics["accumulate"]))
    assert counts == {1, 2, 3}
    assert micro_step._cache_size() == 1

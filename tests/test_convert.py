"""Parity with the authors' implementation and Hugging Face's, through conversion."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import start

from cramjax.checkpoints import convert
from cramjax.config import load
from cramjax.errors import UserError
from cramjax.model.custom_vjp import cross_entropy
from cramjax.model.encoder import Classifier, Encoder, MaskedLM
from cramjax.training import train_step
from cramjax.training.masking import MaskedBatch

CUT = Path(__file__).parent / "golden"
FULL = Path(__file__).parents[2] / "shared" / "golden"
# The variants of crammed_tiny.npz; the first eight are in the cut too.
VARIANTS = {
    "crammed": "",
    "sinusoidal_positions": "positions=sinusoidal",
    "no_embedding_norm": "embedding_norm=False",
    "no_final_norm": "final_norm=False",
    "rms_norm": "norm=rmsnorm",
    "norm_eps_1e-6": "norm_eps=1e-6",
    "two_heads": "heads=2",
    "dense_prediction": "sparse_prediction=False",
    "gelu_ffn": "ffn=plain",
    "learned_positions": "positions=learned",
    "head_transform": "head_transform=True",
    "qkv_bias": "qkv_bias=True",
    "linear_bias": "linear_bias=True",
    "decoder_bias": "decoder_bias=True",
}
IN_CUT = list(VARIANTS)[:8]


def read(folder, name):
    path = folder / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"the uncut references are not here: {path}")
    with np.load(path) as file:
        return dict(file)


def tiny_model(*overrides, row="crammed-bert"):
    small = ["width=32", "layers=2", "heads=4", "vocab_size=96", "max_length=16"]
    small += ["ffn_width=128", "dtype=float32", *overrides]
    return crammed_config(row, *(f"model.{o}" for o in small if o)).model


def crammed_config(row, *overrides):
    path = f"configs/ablations/architecture.py:{row}"
    return load(path, ["glue.max_length=16", *overrides])


@functools.cache
def random_params(model):
    """Values that differ everywhere, so that a round trip mixes nothing up."""
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    init = MaskedLM(model).init
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens)["params"]
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: draw.normal(size=x.shape).astype("f4"), shapes)


def crammed_tensors(golden, group, model):
    """A group's tensors; what the cut leaves out is as in the group crammed."""
    names = convert.write("crammedBERT", random_params(model), model)
    keys = ((f"{g}/params/{name}", name) for g in ("crammed", group) for name in names)
    return {name: golden[key] for key, name in keys if key in golden}


def computed(model, params, tokens_BxL, labels_BxL, mask_BxL=None):
    """Returns hidden states, loss, gradients and logits_BxLxV.

    The loss is the mean cross-entropy where a label is, computed at as many positions
    as every row has labels, or at all of them.
    """
    positions_BxP = np.tile(np.arange(tokens_BxL.shape[1]), (len(tokens_BxL), 1))
    predicted = labels_BxL >= 0
    count = predicted.sum(axis=1)
    if (count == count[0]).all():
        positions_BxP = np.argsort(~predicted, axis=1, kind="stable")[:, : count[0]]
    labels_BxP = np.take_along_axis(labels_BxL, positions_BxP, 1)
    return _compute(model, params, tokens_BxL, positions_BxP, labels_BxP, mask_BxL)


@functools.partial(jax.jit, static_argnums=0)
def _compute(model, params, tokens_BxL, positions_BxP, labels_BxP, mask_BxL):
    lm = MaskedLM(model)

    def loss(params):
        arguments = (tokens_BxL, positions_BxP, mask_BxL)
        logits_BxPxV = lm.apply({"params": params}, *arguments)
        each_BxP = optax.softmax_cross_entropy_with_integer_labels(
            logits_BxPxV, jnp.maximum(labels_BxP, 0)
        )
        has_label = labels_BxP >= 0
        return jnp.sum(each_BxP * has_label) / has_label.sum()

    hidden_BxLxD = Encoder(model).apply({"params": params}, tokens_BxL, mask_BxL)
    logits_BxLxV = lm.apply({"params": params}, hidden_BxLxD, method="logits")
    return hidden_BxLxD, *jax.value_and_grad(loss)(params), logits_BxLxV


def assert_close(ours, golden, tolerance):
    """Relative to the largest entry; of the cut's arrays, at the rows it has."""
    ours = np.asarray(ours)[:: len(ours) // len(golden)] if np.ndim(ours) else ours
    assert np.abs(ours - golden).max() <= tolerance * np.abs(golden).max()


@pytest.mark.parametrize(
    ("folder", "variant"),
    [(CUT, name) for name in IN_CUT] + [(FULL, name) for name in VARIANTS],
)
def test_every_variant_computes_what_the_authors_does(folder, variant):
    golden = read(folder, "crammed_tiny")
    model = tiny_model(VARIANTS[variant])
    tensors = crammed_tensors(golden, variant, model)
    params = convert.read("crammedBERT", tensors, model)
    tokens, labels = golden["inputs"][0], golden["labels"][0]

    expected = golden[f"{variant}/hidden"]
    hidden, loss, grads, _ = computed(model, params, tokens, labels)
    hidden = hidden[: len(expected)]
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss, golden[f"{variant}/loss"], rtol=0, atol=1e-5)
    squares = [np.sum(np.square(x, dtype="f8")) for x in jax.tree.leaves(grads)]
    norm = golden[f"{variant}/grad_norm"]
    np.testing.assert_allclose(np.sqrt(np.sum(squares)), norm, rtol=1e-4)
    grads = convert.write("crammedBERT", grads, model)
    for ours, theirs in (
        ("encoder.embedding.word_embedding.weight", "word_embedding"),
        ("encoder.layers.0.ffn.dense_in.weight", "dense_in_0"),
    ):
        assert_close(grads[ours], golden[f"{variant}/grad/{theirs}"], 1e-4)

    back = convert.write("crammedBERT", params, model)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize("folder", [CUT, FULL])
def test_sixteen_training_steps_are_the_authors(folder, monkeypatch):
    """Through the real micro-step: MultiSteps, clipping, schedule, AdamW."""
    golden = read(folder, "crammed_tiny")
    overrides = ["width=32", "layers=2", "heads=4", "vocab_size=96", "max_length=16"]
    overrides += ["ffn_width=128", "dtype=float32"]
    config = load(
        "configs/default.py",
        [f"model.{o}" for o in overrides]
        + ["glue.max_length=16", "micro_batch=4"]
        + ["batch.sequences=8", "batch.ramp_share=0"],
    )
    model = config.model
    tensors = crammed_tensors(golden, "trajectory", model)
    inputs, labels = golden["inputs"], golden["labels"]

    def given_masks(key, tokens_BxL, **_):
        """Input and label travel together in one number."""
        inputs_BxL, labels_BxL = tokens_BxL // 128, tokens_BxL % 128 - 1
        positions_BxP = jnp.argsort(labels_BxL < 0, axis=1, stable=True)[:, :4]
        targets_BxP = jnp.take_along_axis(labels_BxL, positions_BxP, 1)
        return MaskedBatch(inputs_BxL, positions_BxP, targets_BxP)

    monkeypatch.setattr(train_step, "mask_tokens", given_masks)
    state, micro_step = start(config)
    params = jax.tree.map(jnp.asarray, convert.read("crammedBERT", tensors, model))
    state = state.replace(params=params)
    trace, norms, rates = [], [], []
    for i in range(16):
        tokens = inputs[i] * 128 + np.maximum(labels[i], -1) + 1
        state, metrics = micro_step(state, tokens, np.float32(i / 16))
        trace.append(float(metrics["loss"]))
        if metrics["updated"]:
            norms.append(float(metrics["grad_norm"]))
            rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, golden["trajectory/learning_rates"], rtol=1e-5)
    np.testing.assert_allclose(trace, golden["trajectory/losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(norms, golden["trajectory/grad_norms"], rtol=1e-4)
    final = convert.write("crammedBERT", state.params, model)
    compared = 0
    for key, expected in golden.items():
        name = key.removeprefix("trajectory/final/")
        if name != key:
            assert_close(final[name], expected, 1e-3)
            compared += 1
    assert compared == len(final)


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_the_head_on_the_first_position_is_the_authors(kind):
    golden = read(FULL, "crammed_tiny")
    model = tiny_model()
    tensors = crammed_tensors(golden, kind, model)
    params = convert.read("crammedBERT", tensors, model)
    for ours, theirs in (("pooler", "pooler.dense"), ("head", "head")):
        params[ours] = {
            "kernel": golden[f"{kind}/params/{theirs}.weight"].T,
            "bias": golden[f"{kind}/params/{theirs}.bias"],
        }
    classes = params["head"]["bias"].size
    classifier = Classifier(model, classes=classes, head_width=48)
    logits = jax.jit(classifier.apply)(
        {"params": params},
        golden[f"{kind}/input_ids"],
        golden[f"{kind}/attention_mask"],
    )
    np.testing.assert_allclose(logits, golden[f"{kind}/logits"], rtol=0, atol=1e-5)
    targets = golden[f"{kind}/targets"]
    if kind == "classify":
        loss = cross_entropy(logits, targets)
    else:
        loss = jnp.mean((logits[:, 0] - targets) ** 2)
    np.testing.assert_allclose(loss, golden[f"{kind}/loss"], rtol=0, atol=1e-5)


def functions(kind):
    return functools.partial(convert.read, kind), functools.partial(convert.write, kind)


HUGGING_FACE = {
    "hf_bert_tiny": (
        tiny_model("ffn_width=64", "token_types=2", row="original-bert"),
        *functions("bert"),
        "bert.embeddings.word_embeddings.weight",
    ),
    "modernbert_tiny": (
        tiny_model("ffn_width=96", "layers=3", row="modern"),
        *functions("modernbert"),
        "model.embeddings.tok_embeddings.weight",
    ),
}


@pytest.mark.parametrize("folder", [CUT, FULL])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_faces_models(folder, name):
    golden = read(folder, name)
    model, from_hf, to_hf, word_name = HUGGING_FACE[name]
    tensors = {k[7:]: x for k, x in golden.items() if k.startswith("params/")}
    params = from_hf(tensors, model)
    back = to_hf(params, model)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)

    tokens, mask = golden["input_ids"], golden["attention_mask"]
    labels = golden["labels"]
    hidden, loss, grads, logits = computed(model, params, tokens, labels, mask)
    rows, valid = len(golden["hidden"]), mask == 1
    np.testing.assert_allclose(
        hidden[:rows][valid[:rows]], golden["hidden"][valid[:rows]], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=1e-5)
    assert_close(to_hf(grads, model)[word_name], golden["grad_word_embedding"], 1e-4)
    if "logits" in golden:
        np.testing.assert_allclose(
            logits[valid], golden["logits"][valid], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_encoders_without_a_head(name):
    """They have no prefix; a head is left aside if asked to."""
    model, from_hf, to_hf, word_name = HUGGING_FACE[name]
    params = random_params(model)
    with_head, without = to_hf(params, model), to_hf(params, model, head=False)
    assert not any(key.startswith(("bert.", "model.")) for key in without)
    body = {k: v for k, v in params.items() if k not in ("transform", "decoder_bias")}
    for read_back, expected in (
        (from_hf(without, model, head=False), body),
        (from_hf(with_head, model, head=False), body),
        (from_hf(with_head, model), params),
    ):
        jax.tree.map(np.testing.assert_array_equal, read_back, expected)
    repeated = {"decoder.weight": with_head[word_name]}  # tied, but written out
    if "bert" in word_name:
        repeated = {"cls.predictions.decoder.weight": with_head[word_name]}
    from_hf(with_head | repeated, model)
    repeated = {key: x + 1 for key, x in repeated.items()}
    with pytest.raises(UserError, match=r"decoder\.weight .* is unknown"):
        from_hf(with_head | repeated, model)


def test_what_old_bert_files_have_besides():
    model, from_hf, to_hf, _ = HUGGING_FACE["hf_bert_tiny"]
    params = random_params(model)
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for key, x in to_hf(params, model).items()
    }
    old["bert.pooler.dense.weight"] = np.zeros((32, 32))
    old["cls.seq_relationship.bias"] = np.zeros(2)
    old["bert.embeddings.position_ids"] = np.arange(16)[None]
    jax.tree.map(np.testing.assert_array_equal, from_hf(old, model), params)


def test_the_buffers_of_the_authors_are_left_out_and_nothing_else():
    model = tiny_model()
    params = random_params(model)
    tensors = convert.write("crammedBERT", params, model)
    attention = "encoder.layers.1.attn.self_attention"
    buffers = {
        f"{attention}.norm_factor": np.float32(8**-0.5),
        f"{attention}.rotary_emb.inv_freq": np.ones(4),
        "encoder.embedding.pos_embedding.position_ids": np.arange(16)[None],
    }
    found = convert.read("crammedBERT", tensors | buffers, model)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    for name in ("norm_factor", f"{attention}.norm_factors", f"{attention}.inv_freq"):
        with pytest.raises(
            UserError, match=r"norm_factors? .* unknown|inv_freq .* unk"
        ):
            convert.read("crammedBERT", tensors | {name: np.ones(4)}, model)


def test_all_that_does_not_fit_is_listed(tmp_path):
    model = tiny_model()
    tensors = convert.write("crammedBERT", random_params(model), model)
    del tensors["encoder.final_norm.bias"]
    tensors["encoder.layers.1.attn.dense.weight"] = np.zeros((32, 31))
    tensors["encoder.layers.2.norm1.weight"] = np.zeros(32)
    with pytest.raises(UserError) as error:
        convert.read("crammedBERT", tensors, model)
    assert str(error.value) == (
        "these tensors do not fit the model: "
        "encoder.layers.1.attn.dense.weight is (32, 31), not (32, 32); "
        "encoder.final_norm.bias is missing; "
        "encoder.layers.2.norm1.weight (32,) is unknown"
    )
    with pytest.raises(UserError, match=r"nowhere\.safetensors cannot be read"):
        convert.load_tensors(tmp_path / "nowhere.safetensors")


def test_a_model_that_a_format_cannot_hold_is_refused():
    factorised = tiny_model("embedding_width=16")
    with pytest.raises(UserError, match=r"no place for embedding\.projection\.kernel"):
        convert.write("crammedBERT", random_params(factorised), factorised)
    model = tiny_model()
    with pytest.raises(
        UserError, match=r"norm_placement is 'pre': Hugging Face's BERT"
    ):
        convert.write("bert", random_params(model), model)
    with pytest.raises(UserError, match=r"positions is 'scaled_sinusoidal': Hugging"):
        convert.write("modernbert", random_params(model), model)

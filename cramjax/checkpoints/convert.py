"""Our parameter tree <-> the tensors of other implementations, by name.

Each of `FORMATS` is a table of `_Rule`s that follows from the model's config and covers
every parameter exactly once; reading and writing go through the same table.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import load_file, save

from cramjax import files
from cramjax.config import ModelConfig
from cramjax.errors import UserError
from cramjax.model.encoder import Encoder, MaskedLM, on_any_device
from cramjax.model.layers import BASE
from cramjax.training.checkpoint import checksums

# Keys of the model that have one value in these formats.
HF_FORM: dict[str, Any] = {
    "mixing": "attention",
    "norm": "layernorm",
    "embedding_norm": True,
    "embedding_width": 0,
    "ffn_every": 1,
    "repeats": 1,
    "late_masks": 0,
}
BERT_FORM = HF_FORM | {
    "norm_placement": "post",
    "positions": "learned",
    "ffn": "plain",
    "qkv_bias": True,
    "linear_bias": True,
    "first_norm": True,
    "final_norm": False,
    "global_every": 1,
}
MODERNBERT_FORM = HF_FORM | {
    "norm_placement": "pre",
    "positions": "rotary",
    "ffn": "gated",
    "first_norm": False,
    "final_norm": True,
    "token_types": 0,
}


def read(
    kind: str, tensors: Mapping[str, np.ndarray], model: ModelConfig, head: bool = True
) -> dict[str, Any]:
    """Returns float32 parameters from the tensors of another implementation.

    Args:
      kind: of `FORMATS`.
      tensors: by their names.
      model: of the encoder; its dtype does not matter. What cannot be seen from the
        tensors, such as which layers are local, must be right.
      head: whether to read the masked-LM head; without it, the parameters are those of
        `encoder.Encoder`.

    Raises:
      UserError: a tensor is missing, unknown or of another shape (all are listed), or
        the format has no place for a parameter.
    """
    format, theirs = FORMATS[kind], {}
    for name, tensor in tensors.items():
        name = name.removeprefix(format.prefix)
        of_head = name.startswith(format.head)
        if re.match(format.unused, name) or (of_head and not head):
            continue
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")  # of old files
        theirs[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    rules, shapes = _rules(format, model, head)
    flat: dict[str, np.ndarray] = {}
    wrong = []
    for rule in rules:
        parts = [np.zeros(shapes[leaf], np.bool_) for leaf in rule.leaves]
        expected = rule.join(*parts).shape
        if rule.name not in theirs:
            wrong.append(f"{rule.name} is missing")
            continue
        tensor = np.asarray(theirs.pop(rule.name), np.float32)
        if tensor.shape != expected:
            wrong.append(f"{rule.name} is {tensor.shape}, not {expected}")
            continue
        arrays = (np.ascontiguousarray(x) for x in rule.split(tensor))
        flat |= dict(zip(rule.leaves, arrays, strict=True))
    # The decoder is tied: a file may hold its weights and bias a second time.
    copies = {"decoder.weight": "embedding.word", "decoder.bias": "decoder_bias"}
    for name, tensor in theirs.items():
        original = flat.get(copies.get(".".join(name.split(".")[-2:]), ""))
        if original is None or not np.array_equal(tensor, original):
            wrong.append(f"{name} {np.shape(tensor)} is unknown")
    if wrong:
        raise UserError(f"these tensors do not fit the model: {'; '.join(wrong)}")
    return unflatten_dict(flat, sep=".")


def write(
    kind: str, params: Mapping[str, Any], model: ModelConfig, head: bool = True
) -> dict[str, np.ndarray]:
    """Returns the tensors of another implementation, which `read` turns back.

    Raises:
      UserError: the format has no place for a parameter.
    """
    format = FORMATS[kind]
    rules, _ = _rules(format, model, head)
    flat = flatten_dict(params, sep=".")
    tensors = {}
    for rule in rules:
        bare = not head or rule.name.startswith(format.head)
        arrays = (np.asarray(flat[leaf], np.float32) for leaf in rule.leaves)
        name = rule.name if bare else format.prefix + rule.name
        tensors[name] = np.ascontiguousarray(rule.join(*arrays))
    return tensors


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file.

    Raises:
      UserError: it cannot be read as safetensors, or its checksum differs.
    """
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        found = load_file(path)
        expected = str(files.checksum(checksums(found)))
        if metadata.get(files.CHECKSUM, expected) != expected:
            raise ValueError(f"its {files.CHECKSUM} differs")
        return found
    except Exception as error:  # missing, damaged, or not safetensors at all
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def write_tensors(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> None:
    """Writes a safetensors file with a checksum, which `load_tensors` compares.

    Without other metadata, whose order is arbitrary, equal tensors give equal bytes.
    """
    metadata[files.CHECKSUM] = str(files.checksum(checksums(tensors)))
    files.write_bytes(path, save(tensors, metadata))


@dataclasses.dataclass(frozen=True)
class _Rule:
    """One of their tensors, and the parameters of ours that it holds.

    Attributes:
      name: of their tensor.
      leaves: of our tree, for example "layers_0.ffn.gate.kernel".
      join: from our arrays to theirs.
      split: from their array to ours, the inverse.
    """

    name: str
    leaves: tuple[str, ...]
    join: Callable[..., np.ndarray]
    split: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def _same(name: str, leaf: str) -> _Rule:
    return _Rule(name, (leaf,), lambda x: x, lambda x: (x,))


def _stacked(name: str, *leaves: str, heads: int) -> _Rule:
    """Kernels, theirs (out, in) and ours (in, out), or biases, as one tensor.

    Its rows are ordered (head, leaf, channel).
    """

    def join(*xs):
        by_head = [x.T.reshape(heads, -1, *x.T.shape[1:]) for x in xs]
        return np.stack(by_head, axis=1).reshape(-1, *xs[0].T.shape[1:])

    def split(x):
        by_head = x.reshape(heads, len(leaves), -1, *x.shape[1:])
        parts = (by_head[:, i] for i in range(len(leaves)))
        return tuple(part.reshape(-1, *x.shape[1:]).T for part in parts)

    return _Rule(name, leaves, join, split)


def _dense(name: str, *layers: str, bias: bool, heads: int = 1) -> Iterator[_Rule]:
    """One dense layer of theirs, which holds one or more of ours."""
    kernels = (f"{layer}.kernel" for layer in layers)
    yield _stacked(f"{name}.weight", *kernels, heads=heads)
    if bias:
        biases = (f"{layer}.bias" for layer in layers)
        yield _stacked(f"{name}.bias", *biases, heads=heads)


def _norm(name: str, layer: str, model: ModelConfig) -> Iterator[_Rule]:
    if model.norm == "rmsnorm":
        yield _same(f"{name}.learnable_scale", f"{layer}.scale")
    else:
        yield _same(f"{name}.weight", f"{layer}.scale")
        yield _same(f"{name}.bias", f"{layer}.bias")


def _crammed_rules(model: ModelConfig, head: bool) -> Iterator[_Rule]:
    form = {"mixing": "attention", "token_types": 0, "global_every": 1}
    _require(model, "the authors' crammed-bert", **form, rotary_base=BASE)
    bias = model.linear_bias
    embedding = "encoder.embedding"
    yield _same(f"{embedding}.word_embedding.weight", "embedding.word")
    positions = f"{embedding}.pos_embedding"
    if model.added_positions == "scaled_sinusoidal":
        yield _same(f"{positions}.scale_factor", "embedding.positions.scale")
    if model.added_positions == "learned":
        yield _same(f"{positions}.embedding.weight", "embedding.positions.table")
    if model.embedding_norm:
        yield from _norm(f"{embedding}.norm", "embedding.norm", model)
    for index in range(model.layers):
        theirs, ours = f"encoder.layers.{index}", f"layers_{index}"
        if index or model.first_norm:
            yield from _norm(f"{theirs}.norm1", f"{ours}.attention_norm", model)
        qkv = (f"{ours}.attention.{n}" for n in ("query", "key", "value"))
        yield from _dense(
            f"{theirs}.attn.self_attention.query_key_value",
            *qkv,
            bias=model.qkv_bias,
            heads=model.heads,
        )
        yield from _dense(f"{theirs}.attn.dense", f"{ours}.attention.output", bias=bias)
        if not model.has_ffn(index):
            continue
        yield from _norm(f"{theirs}.norm2", f"{ours}.ffn_norm", model)
        # The second half of a gated layer's input kernel goes through the activation.
        names = ("value", "gate") if model.ffn == "gated" else ("value",)
        inputs = (f"{ours}.ffn.{n}" for n in names)
        yield from _dense(f"{theirs}.ffn.dense_in", *inputs, bias=bias)
        yield from _dense(f"{theirs}.ffn.dense_out", f"{ours}.ffn.output", bias=bias)
    if model.final_norm:
        yield from _norm("encoder.final_norm", "final_norm", model)
    if head and model.head_transform:
        yield from _dense("prediction_head.dense", "transform.dense", bias=bias)
        yield from _norm("prediction_head.norm", "transform.norm", model)
    if head and model.decoder_bias:
        yield _same("decoder.bias", "decoder_bias")


def _bert_rules(model: ModelConfig, head: bool) -> Iterator[_Rule]:
    heads = {"head_transform": True, "decoder_bias": True} if head else {}
    _require(model, "Hugging Face's BERT", **BERT_FORM, **heads)
    yield _same("embeddings.word_embeddings.weight", "embedding.word")
    positions = "embedding.positions.table"
    yield _same("embeddings.position_embeddings.weight", positions)
    if model.token_types:
        types = "embedding.token_type"
        yield _same("embeddings.token_type_embeddings.weight", types)
    yield from _norm("embeddings.LayerNorm", "embedding.norm", model)
    for index in range(model.layers):
        layer, ours = f"encoder.layer.{index}", f"layers_{index}"
        for theirs, part in (
            ("attention.self.query", "attention.query"),
            ("attention.self.key", "attention.key"),
            ("attention.self.value", "attention.value"),
            ("attention.output.dense", "attention.output"),
            ("intermediate.dense", "ffn.value"),
            ("output.dense", "ffn.output"),
        ):
            yield from _dense(f"{layer}.{theirs}", f"{ours}.{part}", bias=True)
        theirs = f"{layer}.attention.output.LayerNorm"
        yield from _norm(theirs, f"{ours}.attention_norm", model)
        yield from _norm(f"{layer}.output.LayerNorm", f"{ours}.ffn_norm", model)
    if head:
        theirs = "cls.predictions.transform"
        yield from _dense(f"{theirs}.dense", "transform.dense", bias=True)
        yield from _norm(f"{theirs}.LayerNorm", "transform.norm", model)
        yield _same("cls.predictions.bias", "decoder_bias")


def _modernbert_rules(model: ModelConfig, head: bool) -> Iterator[_Rule]:
    bias = model.linear_bias
    heads = {"head_transform": True} if head else {}
    form = MODERNBERT_FORM | {"qkv_bias": bias} | heads
    _require(model, "Hugging Face's ModernBERT", **form)
    yield _same("embeddings.tok_embeddings.weight", "embedding.word")
    yield from _norm("embeddings.norm", "embedding.norm", model)
    for index in range(model.layers):
        theirs, ours = f"layers.{index}", f"layers_{index}"
        if index:
            yield from _norm(f"{theirs}.attn_norm", f"{ours}.attention_norm", model)
        inputs = (f"{ours}.attention.{n}" for n in ("query", "key", "value"))
        yield from _dense(f"{theirs}.attn.Wqkv", *inputs, bias=bias)
        yield from _dense(f"{theirs}.attn.Wo", f"{ours}.attention.output", bias=bias)
        yield from _norm(f"{theirs}.mlp_norm", f"{ours}.ffn_norm", model)
        # The first half of the input kernel goes through the activation.
        inputs = (f"{ours}.ffn.{n}" for n in ("gate", "value"))
        yield from _dense(f"{theirs}.mlp.Wi", *inputs, bias=bias)
        yield from _dense(f"{theirs}.mlp.Wo", f"{ours}.ffn.output", bias=bias)
    yield from _norm("final_norm", "final_norm", model)
    if head:
        yield from _dense("head.dense", "transform.dense", bias=bias)
        yield from _norm("head.norm", "transform.norm", model)
        if model.decoder_bias:
            yield _same("decoder.bias", "decoder_bias")


def _torch_rules(model: ModelConfig, head: bool) -> Iterator[_Rule]:
    """Yields our own names, with the ends that PyTorch's layers give them."""
    for leaf in _shapes(model, head):
        path, _, last = re.sub(r"layers_(\d+)", r"layers.\1", leaf).rpartition(".")
        if last == "kernel":
            yield _stacked(f"{path}.weight", leaf, heads=1)
        elif last in ("scale", "table"):  # of a norm or of positions
            yield _same(f"{path}.weight", leaf)
        elif path == "embedding":  # its two tables
            yield _same(f"{path}.{last}.weight", leaf)
        else:
            yield _same(f"{path}.{last}".lstrip("."), leaf)


def _require(model: ModelConfig, name: str, **values: Any) -> None:
    for key, value in values.items():
        if (found := getattr(model, key)) != value:
            raise UserError(f"config.model.{key} is {found!r}: {name} has {value!r}")


def _rules(
    format: "Format", model: ModelConfig, head: bool
) -> tuple[list[_Rule], dict[str, tuple[int, ...]]]:
    """Returns a format's rules and the shape of each of our parameters."""
    rules, shapes = list(format.rules(model, head)), _shapes(model, head)
    if left_out := shapes.keys() - {leaf for rule in rules for leaf in rule.leaves}:
        raise UserError(f"the format has no place for {', '.join(sorted(left_out))}")
    return rules, shapes


def _shapes(model: ModelConfig, head: bool) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each of our parameters, by its name."""
    tokens_1x8 = jnp.zeros((1, 8), jnp.int32)
    arguments = (tokens_1x8, tokens_1x8[:, :1]) if head else (tokens_1x8,)
    module = (MaskedLM if head else Encoder)(on_any_device(model))
    tree = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
    return {leaf: x.shape for leaf, x in flatten_dict(tree, sep=".").items()}


class Format(NamedTuple):
    """The names of another implementation's tensors."""

    rules: Callable[[ModelConfig, bool], Iterator[_Rule]]  # without `prefix`
    prefix: str  # of the encoder's tensors in a model with a head
    head: tuple[str, ...]  # how names of the masked-LM head begin
    unused: str = "(?!)"  # pattern of how names begin that are left out; this: none


# By the model_type of config.json.
FORMATS = {
    # The authors' PyTorch crammed-bert (arXiv 2212.14034). Besides parameters, it has
    # the scale of attention scores, rotary frequencies and indices of positions.
    "crammedBERT": Format(
        _crammed_rules,
        prefix="",
        head=("prediction_head.", "decoder."),
        unused=r"encoder\.layers\.\d+\.attn\.self_attention\."
        r"(norm_factor|rotary_emb\.inv_freq)$"
        r"|encoder\.embedding\.pos_embedding\.position_ids$",
    ),
    # Hugging Face's, with the pooler and the heads that this model lacks. The config's
    # form is the row `original-bert` of `configs/ablations/architecture.py`.
    "bert": Format(
        _bert_rules,
        prefix="bert.",
        head=("cls.",),
        unused=r"pooler\.|classifier\.|cls\.seq_|embeddings\.position_ids",
    ),
    # The config's form is the row `modern`.
    "modernbert": Format(
        _modernbert_rules, prefix="model.", head=("head.", "decoder.")
    ),
    # The models of modeling_cramjax.py, without a classifier's head.
    "cramjax": Format(
        _torch_rules,
        prefix="model.",
        head=("transform.", "output_projection.", "decoder_bias"),
        unused=r"pooler\.|classifier\.",
    ),
}

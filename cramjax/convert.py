"""Our parameter tree <-> the tensors of other implementations, by name.

Three formats: the authors' PyTorch crammed-bert (arXiv 2212.14034), and Hugging Face's
BERT and ModernBERT. Each is a table of `_Rule`s that follows from the model's config
and covers every parameter exactly once; reading and writing go through the same table.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config import ModelConfig
from cramjax.errors import UserError
from cramjax.model.encoder import Encoder, MaskedLM, on_any_device

# A mapping of names to arrays, or the path of a safetensors file.
Tensors = Mapping[str, np.ndarray] | str | os.PathLike
Leaf = tuple[str, ...]  # the path of a parameter in our tree

# What the authors' state dicts hold besides parameters: the scale of attention scores,
# rotary frequencies and the numbers of learned positions.
_CRAMMED_BUFFERS = re.compile(
    r"encoder\.layers\.\d+\.attn\.self_attention\.(norm_factor|rotary_emb\.inv_freq)"
    r"|encoder\.embedding\.pos_embedding\.position_ids"
)


def from_crammed(tensors: Tensors, model: ModelConfig) -> dict[str, Any]:
    """Returns the parameters of `encoder.MaskedLM` from the authors' tensors.

    Their buffers, which follow from the architecture, are left out.

    Args:
      tensors: named as in the authors' checkpoints, for example
        `encoder.layers.0.norm1.weight`; or the path of a safetensors file.
      model: the architecture; its dtype does not matter, parameters are float32.

    Raises:
      UserError: a tensor is missing, unknown or of another shape; all are listed.
    """
    learned = {
        name: tensor
        for name, tensor in load_tensors(tensors).items()
        if not _CRAMMED_BUFFERS.fullmatch(name)
    }
    return _read(learned, _crammed_rules(model), model, head=True)


def to_crammed(params: Mapping[str, Any], model: ModelConfig) -> dict[str, np.ndarray]:
    """Returns the authors' tensors; `from_crammed` gives the parameters back."""
    return _write(params, _crammed_rules(model), model, head=True)


def from_hf_bert(
    tensors: Tensors, model: ModelConfig, head: bool = True
) -> dict[str, Any]:
    """Returns parameters from Hugging Face's `BertForMaskedLM` or `BertModel`.

    The pooler and the next-sentence head, which this model has not, are left out.

    Args:
      tensors: names with or without the prefix `bert.`; or a safetensors file's path.
      model: post-norm, no final norm, learned positions, see the row `original-bert` of
        `configs/ablations/architecture.py`; `max_length` as in the file.
      head: whether to read the masked-LM head; without it the result is the tree of
        `encoder.Encoder`.

    Raises:
      UserError: a tensor is missing, unknown or of another shape; all are listed.
    """
    renamed = {}
    for name, tensor in load_tensors(tensors).items():
        name = name.removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        unused = ("pooler.", "cls.seq_relationship.", "embeddings.position_ids")
        if name.startswith(unused) or (not head and name.startswith("cls.")):
            continue
        renamed[name] = tensor
    return _read(renamed, _bert_rules(model, head), model, head)


def to_hf_bert(
    params: Mapping[str, Any], model: ModelConfig, head: bool = True
) -> dict[str, np.ndarray]:
    """Returns the tensors of `BertForMaskedLM`, or of `BertModel` without the head."""
    tensors = _write(params, _bert_rules(model, head), model, head)
    return _prefixed(tensors, "bert.", but="cls.") if head else tensors


def from_hf_modernbert(
    tensors: Tensors, model: ModelConfig, head: bool = True
) -> dict[str, Any]:
    """Returns parameters from `ModernBertForMaskedLM` or `ModernBertModel`.

    All layers attend everywhere, with a rotary base of 10000: other settings give other
    numbers, and cannot be told from the tensors.

    Args:
      tensors: names with or without the prefix `model.`; or a safetensors file's path.
      model: see the row `modern` of `configs/ablations/architecture.py`.
      head: as for `from_hf_bert`.

    Raises:
      UserError: a tensor is missing, unknown or of another shape; all are listed.
    """
    renamed = {n.removeprefix("model."): t for n, t in load_tensors(tensors).items()}
    if not head:
        aside = ("head.", "decoder.")
        renamed = {n: t for n, t in renamed.items() if not n.startswith(aside)}
    return _read(renamed, _modernbert_rules(model, head), model, head)


def to_hf_modernbert(
    params: Mapping[str, Any], model: ModelConfig, head: bool = True
) -> dict[str, np.ndarray]:
    """Returns the tensors of `ModernBertForMaskedLM`, or of `ModernBertModel`."""
    tensors = _write(params, _modernbert_rules(model, head), model, head)
    return _prefixed(tensors, "model.", but=("head.", "decoder.")) if head else tensors


@dataclasses.dataclass(frozen=True)
class _Rule:
    """One of their tensors, and the parameters of ours that it holds.

    Attributes:
      name: of their tensor.
      leaves: paths of our parameters.
      join: from our arrays to theirs.
      split: from their array to ours, the inverse.
    """

    name: str
    leaves: tuple[Leaf, ...]
    join: Callable[..., np.ndarray]
    split: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def _same(name: str, *leaf: str) -> _Rule:
    return _Rule(name, (leaf,), lambda x: x, lambda x: (x,))


def _kernel(name: str, *leaf: str) -> _Rule:
    """A dense layer's weight: theirs is (out, in), ours (in, out)."""
    return _Rule(name, (leaf,), lambda x: x.T, lambda x: (x.T,))


def _stacked(name: str, *leaves: Leaf) -> _Rule:
    """Several kernels or biases in one, along the first axis of theirs."""
    return _Rule(
        name,
        leaves,
        lambda *xs: np.concatenate([x.T for x in xs]),
        lambda x: tuple(part.T for part in np.split(x, len(leaves))),
    )


def _stacked_by_head(name: str, heads: int, *leaves: Leaf) -> _Rule:
    """As `_stacked`, but its rows are ordered (head, query/key/value, channel)."""

    def join(*xs):
        by_head = [x.T.reshape(heads, -1, *x.T.shape[1:]) for x in xs]
        return np.stack(by_head, axis=1).reshape(-1, *xs[0].T.shape[1:])

    def split(x):
        by_head = x.reshape(heads, len(leaves), -1, *x.shape[1:])
        parts = (by_head[:, i] for i in range(len(leaves)))
        return tuple(part.reshape(-1, *x.shape[1:]).T for part in parts)

    return _Rule(name, leaves, join, split)


def _dense(name: str, *path: str, bias: bool) -> Iterator[_Rule]:
    yield _kernel(f"{name}.weight", *path, "kernel")
    if bias:
        yield _same(f"{name}.bias", *path, "bias")


def _norm(name: str, *path: str, model: ModelConfig) -> Iterator[_Rule]:
    if model.norm == "rmsnorm":
        yield _same(f"{name}.learnable_scale", *path, "scale")
    else:
        yield _same(f"{name}.weight", *path, "scale")
        yield _same(f"{name}.bias", *path, "bias")


def _crammed_rules(model: ModelConfig) -> Iterator[_Rule]:
    _require_form("the authors' crammed-bert", model, mixing="attention", token_types=0)
    embedding = "encoder.embedding"
    yield _same(f"{embedding}.word_embedding.weight", "embedding", "word")
    if model.added_positions == "scaled_sinusoidal":
        theirs = f"{embedding}.pos_embedding.scale_factor"
        yield _same(theirs, "embedding", "positions", "scale")
    if model.added_positions == "learned":
        theirs = f"{embedding}.pos_embedding.embedding.weight"
        yield _same(theirs, "embedding", "positions", "table")
    if model.embedding_norm:
        yield from _norm(f"{embedding}.norm", "embedding", "norm", model=model)
    for index in range(model.layers):
        layer, ours = f"encoder.layers.{index}", f"layers_{index}"
        bias = model.linear_bias
        if index or model.first_norm:
            yield from _norm(f"{layer}.norm1", ours, "attention_norm", model=model)
        for kind, used in (("kernel", True), ("bias", model.qkv_bias)):
            if used:
                theirs = "weight" if kind == "kernel" else kind
                yield _stacked_by_head(
                    f"{layer}.attn.self_attention.query_key_value.{theirs}",
                    model.heads,
                    *((ours, "attention", n, kind) for n in ("query", "key", "value")),
                )
        yield from _dense(f"{layer}.attn.dense", ours, "attention", "output", bias=bias)
        if not model.has_ffn(index):
            continue
        yield from _norm(f"{layer}.norm2", ours, "ffn_norm", model=model)
        # The second half of a gated layer's input kernel goes through the activation.
        order = ("value", "gate") if model.ffn == "gated" else ("value",)
        yield from _stacked_dense(f"{layer}.ffn.dense_in", ours, "ffn", order, bias)
        yield from _dense(f"{layer}.ffn.dense_out", ours, "ffn", "output", bias=bias)
    if model.final_norm:
        yield from _norm("encoder.final_norm", "final_norm", model=model)
    if model.head_transform:
        yield from _dense(
            "prediction_head.dense", "transform", "dense", bias=model.linear_bias
        )
        yield from _norm("prediction_head.norm", "transform", "norm", model=model)
    if model.decoder_bias:
        yield _same("decoder.bias", "decoder_bias")


def _stacked_dense(
    name: str, layer: str, part: str, order: tuple[str, ...], bias: bool
) -> Iterator[_Rule]:
    yield _stacked(f"{name}.weight", *((layer, part, n, "kernel") for n in order))
    if bias:
        yield _stacked(f"{name}.bias", *((layer, part, n, "bias") for n in order))


def _bert_rules(model: ModelConfig, head: bool) -> Iterator[_Rule]:
    _require_form(
        "Hugging Face's BERT",
        model,
        norm_placement="post",
        positions="learned",
        ffn="plain",
        norm="layernorm",
        mixing="attention",
        qkv_bias=True,
        linear_bias=True,
        embedding_norm=True,
        final_norm=False,
        embedding_width=0,
        ffn_every=1,
        repeats=1,
    )
    if head:
        _require_form(
            "Hugging Face's BERT", model, head_transform=True, decoder_bias=True
        )
    yield _same("embeddings.word_embeddings.weight", "embedding", "word")
    yield _same(
        "embeddings.position_embeddings.weight", "embedding", "positions", "table"
    )
    if model.token_types:
        yield _same(
            "embeddings.token_type_embeddings.weight", "embedding", "token_type"
        )
    yield from _norm("embeddings.LayerNorm", "embedding", "norm", model=model)
    for index in range(model.layers):
        layer, ours = f"encoder.layer.{index}", f"layers_{index}"
        for n in ("query", "key", "value"):
            theirs = f"{layer}.attention.self.{n}"
            yield from _dense(theirs, ours, "attention", n, bias=True)
        theirs = f"{layer}.attention.output"
        yield from _dense(f"{theirs}.dense", ours, "attention", "output", bias=True)
        yield from _norm(f"{theirs}.LayerNorm", ours, "attention_norm", model=model)
        yield from _dense(
            f"{layer}.intermediate.dense", ours, "ffn", "value", bias=True
        )
        yield from _dense(f"{layer}.output.dense", ours, "ffn", "output", bias=True)
        yield from _norm(f"{layer}.output.LayerNorm", ours, "ffn_norm", model=model)
    if head:
        theirs = "cls.predictions.transform"
        yield from _dense(f"{theirs}.dense", "transform", "dense", bias=True)
        yield from _norm(f"{theirs}.LayerNorm", "transform", "norm", model=model)
        yield _same("cls.predictions.bias", "decoder_bias")


def _modernbert_rules(model: ModelConfig, head: bool) -> Iterator[_Rule]:
    name = "Hugging Face's ModernBERT"
    _require_form(
        name,
        model,
        norm_placement="pre",
        positions="rotary",
        ffn="gated",
        norm="layernorm",
        mixing="attention",
        embedding_norm=True,
        first_norm=False,
        final_norm=True,
        embedding_width=0,
        token_types=0,
        ffn_every=1,
        repeats=1,
        qkv_bias=model.linear_bias,
    )
    if head:
        _require_form(name, model, head_transform=True)
    bias = model.linear_bias
    yield _same("embeddings.tok_embeddings.weight", "embedding", "word")
    yield from _norm("embeddings.norm", "embedding", "norm", model=model)
    for index in range(model.layers):
        layer, ours = f"layers.{index}", f"layers_{index}"
        if index:
            yield from _norm(f"{layer}.attn_norm", ours, "attention_norm", model=model)
        order = ("query", "key", "value")
        yield from _stacked_dense(f"{layer}.attn.Wqkv", ours, "attention", order, bias)
        yield from _dense(f"{layer}.attn.Wo", ours, "attention", "output", bias=bias)
        yield from _norm(f"{layer}.mlp_norm", ours, "ffn_norm", model=model)
        # The first half of the input kernel goes through the activation.
        yield from _stacked_dense(
            f"{layer}.mlp.Wi", ours, "ffn", ("gate", "value"), bias
        )
        yield from _dense(f"{layer}.mlp.Wo", ours, "ffn", "output", bias=bias)
    yield from _norm("final_norm", "final_norm", model=model)
    if head:
        yield from _dense("head.dense", "transform", "dense", bias=bias)
        yield from _norm("head.norm", "transform", "norm", model=model)
        if model.decoder_bias:
            yield _same("decoder.bias", "decoder_bias")


def _require_form(name: str, model: ModelConfig, **values: Any) -> None:
    for key, value in values.items():
        if getattr(model, key) != value:
            raise UserError(
                f"config.model.{key} is {getattr(model, key)!r}: {name} has {value!r}"
            )


def load_tensors(tensors: Tensors) -> dict[str, np.ndarray]:
    """Returns the tensors, read from the file if it is a path.

    Raises:
      UserError: it cannot be read as safetensors.
    """
    if isinstance(tensors, Mapping):
        return dict(tensors)
    from safetensors.numpy import load_file

    try:
        return load_file(Path(tensors).expanduser())
    except Exception as error:  # missing, cut, or not safetensors at all
        raise UserError(f"{tensors} cannot be read as safetensors: {error}") from error


def _read(tensors: Tensors, rules, model: ModelConfig, head: bool) -> dict[str, Any]:
    theirs = load_tensors(tensors)
    rules, shapes = list(rules), _shapes(model, head)
    _check_coverage(rules, shapes)
    flat: dict[Leaf, np.ndarray] = {}
    wrong = []
    for rule in rules:
        parts = [np.zeros(shapes[leaf].shape, np.bool_) for leaf in rule.leaves]
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
    word = flat.get(("embedding", "word"))
    for name, tensor in theirs.items():
        if not _repeats(name, np.asarray(tensor), word, flat.get(("decoder_bias",))):
            wrong.append(f"{name} {np.shape(tensor)} is unknown")
    if wrong:
        raise UserError(f"these tensors do not fit the model: {'; '.join(wrong)}")
    return _nested(flat)


def _repeats(name: str, tensor: np.ndarray, word, decoder_bias) -> bool:
    """Returns whether a tensor repeats what is read elsewhere: the tied decoder."""
    same = {"decoder.weight": word, "decoder.bias": decoder_bias}.get(
        ".".join(name.split(".")[-2:])
    )
    return same is not None and np.array_equal(tensor, same)


def _write(
    params: Mapping[str, Any], rules, model: ModelConfig, head: bool
) -> dict[str, np.ndarray]:
    rules = list(rules)
    _check_coverage(rules, _shapes(model, head))
    tensors = {}
    for rule in rules:
        arrays = []
        for leaf in rule.leaves:
            x: Any = params
            for key in leaf:
                x = x[key]
            arrays.append(np.asarray(x, np.float32))
        tensors[rule.name] = np.ascontiguousarray(rule.join(*arrays))
    return tensors


def _check_coverage(rules: list[_Rule], shapes: Mapping[Leaf, Any]) -> None:
    lost = set(shapes) - {leaf for rule in rules for leaf in rule.leaves}
    if lost:
        names = ", ".join(sorted(".".join(leaf) for leaf in lost))
        raise UserError(f"the format has no place for {names}")


def _shapes(model: ModelConfig, head: bool) -> dict[Leaf, jax.ShapeDtypeStruct]:
    tokens_1xL = jnp.zeros((1, 8), jnp.int32)
    key = jax.random.key(0)
    model = on_any_device(model)
    if head:
        tree = jax.eval_shape(MaskedLM(model).init, key, tokens_1xL, tokens_1xL[:, :1])
    else:
        tree = jax.eval_shape(Encoder(model).init, key, tokens_1xL)
    leaves = jax.tree_util.tree_leaves_with_path(tree["params"])
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def _nested(flat: Mapping[Leaf, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*path, name), array in flat.items():
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[name] = array
    return tree


def _prefixed(tensors, prefix: str, but: str | tuple[str, ...]):
    return {n if n.startswith(but) else prefix + n: t for n, t in tensors.items()}

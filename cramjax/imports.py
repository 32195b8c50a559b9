"""Checkpoints of other projects, from a folder: weights, shape and tokenizer.

A folder holds config.json, model.safetensors and tokenizer.json, as on the Hugging Face
hub. The vocabulary is reordered so that the special tokens have the ids they have here
(`data.tokenizer.SPECIAL_TOKENS`); nothing else needs to know where a model came from.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax import convert, files
from cramjax.data.tokenizer import CLS, SEP, SPECIAL_TOKENS
from cramjax.errors import UserError
from cramjax.model.variants import BASE
from cramjax.schema import ModelConfig

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
WAY_OUT = "a folder needs " + ", ".join((CONFIG, WEIGHTS, TOKENIZER))

# What special tokens of ours are called elsewhere; what is missing is not moved.
_NAMES = {
    "<pad>": ("<pad>", "[PAD]"),
    "<unk>": ("<unk>", "[UNK]"),
    "<cls>": ("<cls>", "[CLS]"),
    "<sep>": ("<sep>", "[SEP]"),
    "<mask>": ("<mask>", "[MASK]"),
}
SPECIAL = frozenset(SPECIAL_TOKENS).union(*_NAMES.values())  # by all their names
_NEEDED = ("<pad>", "<cls>", "<sep>", "<mask>")

# Keys that are the same in all, or of no meaning once there are weights.
_COMMON: dict[str, Any] = {
    "repeats": 1,
    "embedding_width": 0,
    "dtype": "float32",
    "attention": "xla",
    "mixing": "attention",
    "ffn_every": 1,
    "norm": "layernorm",
    "embedding_norm": True,
    "sparse_prediction": True,
    "init": "normal",
    "init_std": 0.02,
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model of another project.

    Attributes:
      model: its shape.
      params: of `encoder.MaskedLM`, or of `encoder.Encoder` if `has_head` is False.
      words: its tokenizer, in our order.
      has_head: whether it can predict words.
      empty_second: of its template, see `glue.empty_second`.
      first: id of the token that a text began with in its pretraining.
    """

    model: ModelConfig
    params: dict[str, Any]
    words: Tokenizer
    has_head: bool
    empty_second: bool
    first: int


@dataclasses.dataclass(frozen=True)
class _Format:
    """How one kind of checkpoint is read.

    Attributes:
      shape: from config.json to a `ModelConfig`'s keys.
      read: from (tensors, model, head) to parameters.
      head: beginning of the names that only a masked-LM head has.
      empty_second: of its template.
      first: see `Imported`, where its tokenizer puts no <cls> before a single text.
    """

    shape: Callable[[Mapping[str, Any]], dict[str, Any]]
    read: Callable[..., dict[str, Any]]
    head: str
    empty_second: bool = False
    first: int = CLS


def load(folder: Path) -> Imported:
    """Reads a checkpoint of Hugging Face's BERT or ModernBERT, or of the authors.

    Raises:
      UserError: a file is missing or damaged, or the model is of another kind or uses
        what this one has not.
    """
    facts = files.read_json(folder / CONFIG, WAY_OUT)
    kind = facts.get("model_type")
    if kind not in _FORMATS:
        raise UserError(
            f"{folder / CONFIG}: model_type is {kind!r}, readable are "
            f"{', '.join(_FORMATS)}"
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder / WEIGHTS} is not there: {WAY_OUT}")
    read = _FORMATS[kind]
    tensors = convert.load_tensors(folder / WEIGHTS)
    has_head = any(name.startswith(read.head) for name in tensors)
    try:
        keys = read.shape(facts)
    except KeyError as error:
        raise UserError(f"{folder / CONFIG} has no {error}") from error
    if not has_head:
        keys |= {"head_transform": False, "decoder_bias": False}
    model = ModelConfig(**_COMMON | keys)
    params = read.read(tensors, model, has_head)
    words, old_ids_V = _reordered(folder / TOKENIZER, model.vocab_size)
    params["embedding"]["word"] = params["embedding"]["word"][old_ids_V]
    if "decoder_bias" in params:
        params["decoder_bias"] = params["decoder_bias"][old_ids_V]
    template = Tokenizer.from_file(str(folder / TOKENIZER)).encode("").tokens
    first = CLS if set(template[:1]) & set(_NAMES["<cls>"]) else read.first
    return Imported(model, params, words, has_head, read.empty_second, first)


def _reordered(path: Path, vocab_size: int) -> tuple[Tokenizer, np.ndarray]:
    """Returns the tokenizer with our special ids, and each new id's old one."""
    content = files.read_json(path, WAY_OUT)
    content |= {"post_processor": None, "truncation": None, "padding": None}
    try:
        words = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} cannot be read ({error}): {WAY_OUT}") from error
    if words.get_vocab_size() > vocab_size:
        raise UserError(
            f"{path} has {words.get_vocab_size():,} entries and the model's embedding "
            f"{vocab_size:,} rows: {WAY_OUT}"
        )
    old_ids_V = np.arange(vocab_size)
    for new, token in enumerate(SPECIAL_TOKENS):
        found = [words.token_to_id(name) for name in _NAMES.get(token, ())]
        old = next((i for i in found if i is not None), None)
        if old is None and token in _NEEDED:
            raise UserError(f"{path} has none of the tokens {_NAMES[token]}")
        if old is not None:
            place = int(np.flatnonzero(old_ids_V == old)[0])
            old_ids_V[[new, place]] = old_ids_V[[place, new]]
    new_ids_V = np.argsort(old_ids_V)
    vocab = content["model"]["vocab"]
    if isinstance(vocab, dict):
        # The library numbers added tokens that are not in the vocabulary by itself.
        vocab = {added["content"]: added["id"] for added in content["added_tokens"]} | (
            vocab
        )
        vocab = {token: int(new_ids_V[i]) for token, i in vocab.items()}
    elif len(vocab) <= old_ids_V[: len(SPECIAL_TOKENS)].max():
        raise UserError(f"{path} has special tokens that are not in its vocabulary")
    else:  # [[token, score], ...], in the order of their ids
        vocab = [vocab[i] for i in old_ids_V[: len(vocab)]]
    content["model"]["vocab"] = vocab
    for added in content["added_tokens"]:
        added["id"] = int(new_ids_V[added["id"]])
    words = Tokenizer.from_str(json.dumps(content))
    words.encode_special_tokens = True
    return words, old_ids_V


def _bert(facts: Mapping[str, Any]) -> dict[str, Any]:
    _require(facts, position_embedding_type="absolute", hidden_act="gelu")
    return {
        "width": facts["hidden_size"],
        "ffn_width": facts["intermediate_size"],
        "layers": facts["num_hidden_layers"],
        "heads": facts["num_attention_heads"],
        "vocab_size": facts["vocab_size"],
        "max_length": facts["max_position_embeddings"],
        "token_types": facts["type_vocab_size"],
        "norm_eps": facts["layer_norm_eps"],
        "ffn": "plain",
        "activation": "gelu",
        "positions": "learned",
        "norm_placement": "post",
        "first_norm": True,
        "final_norm": False,
        "qkv_bias": True,
        "linear_bias": True,
        "head_transform": True,
        "decoder_bias": True,
    }


def _modernbert(facts: Mapping[str, Any]) -> dict[str, Any]:
    _require_attention_everywhere(facts)
    _require(facts, hidden_activation="gelu")
    bias = bool(facts.get("mlp_bias", False))
    _require(facts, attention_bias=bias, classifier_bias=bias)
    return {
        "width": facts["hidden_size"],
        "ffn_width": 2 * facts["intermediate_size"],
        "layers": facts["num_hidden_layers"],
        "heads": facts["num_attention_heads"],
        "vocab_size": facts["vocab_size"],
        "max_length": facts["max_position_embeddings"],
        "token_types": 0,
        "norm_eps": facts.get("norm_eps", 1e-5),
        "ffn": "gated",
        "activation": "gelu",
        "positions": "rotary",
        "norm_placement": "pre",
        "first_norm": False,
        "final_norm": True,
        "qkv_bias": bias,
        "linear_bias": bias,
        "head_transform": True,
        "decoder_bias": bool(facts.get("decoder_bias", True)),
    }


def _read_modernbert(tensors: convert.Tensors, model: ModelConfig, head: bool):
    """A norm without a bias (`norm_bias` is false) is one whose bias is 0."""
    zeros = {
        name.removesuffix("weight") + "bias": np.zeros_like(tensor)
        for name, tensor in tensors.items()
        if name.endswith("norm.weight")
    }
    return convert.from_hf_modernbert(zeros | tensors, model, head)


def _crammed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The final model of arXiv 2212.14034, section 4.2, of any size.

    Further biases, norms or heads show in the tensors, what is required here does not.
    """
    arch = facts["arch"]
    embedding, attention = arch["embedding"], arch["attention"]
    _require(arch, norm="LayerNorm", norm_scheme="pre", nonlin="GELUglu")
    _require(embedding, pos_embedding="scaled-sinusoidal")
    _require(attention, rotary_embedding=False, causal_attention=False)
    _require(attention, sequence_op="torch-softmax")
    return {
        "width": arch["hidden_size"],
        "ffn_width": arch["intermed_size"],
        "layers": arch["num_transformer_layers"],
        "heads": attention["num_attention_heads"],
        "vocab_size": embedding["vocab_size"],
        "max_length": embedding["max_seq_length"],
        "token_types": 0,
        "norm_eps": arch["norm_eps"],
        "ffn": "gated",
        "activation": "gelu",
        "positions": "scaled_sinusoidal",
        "norm_placement": "pre",
        "first_norm": True,
        "final_norm": True,
        "qkv_bias": False,
        "linear_bias": False,
        "head_transform": False,
        "decoder_bias": False,
    }


def _require(facts: Mapping[str, Any], **values: Any) -> None:
    for key, value in values.items():
        if facts.get(key, value) != value:
            raise UserError(
                f"{CONFIG}: {key} is {facts[key]!r}, this encoder has {value!r} only"
            )


def _require_attention_everywhere(facts: Mapping[str, Any]) -> None:
    """Refuses local layers and another rotary base, as ModernBERT-base has them.

    What a file leaves out is as it is there: every third layer attends everywhere, with
    a base of 160,000.
    """
    layers = facts["num_hidden_layers"]
    every = facts.get("global_attn_every_n_layers", 3)
    # Older files count the layers, newer ones list them and the bases.
    kinds = facts.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention"
        for layer in range(layers)
    ]
    rotary = (facts.get("rope_parameters") or {}).get("full_attention") or {}
    theta = rotary.get("rope_theta", facts.get("global_rope_theta", 160_000.0))
    scaling = rotary.get("rope_type", "default")
    found = []
    if local := sum(kind != "full_attention" for kind in kinds):
        window = facts.get("local_attention", 128)
        found.append(f"{local} of {layers} layers that see {window} tokens around each")
    if theta != BASE:
        found.append(f"a rotary theta of {theta:g}")
    if scaling != "default":
        found.append(f"rotary positions of the type {scaling!r}")
    if found:
        raise UserError(
            f"{CONFIG}: this ModernBERT has {' and '.join(found)}; readable are those "
            f"with layers that all see all tokens and a rotary theta of {BASE:g}, and "
            "BERT"
        )


_FORMATS = {
    "bert": _Format(_bert, convert.from_hf_bert, "cls.predictions."),
    "modernbert": _Format(_modernbert, _read_modernbert, "head."),
    "crammedBERT": _Format(
        _crammed,
        lambda tensors, model, head: convert.from_crammed(tensors, model),
        "",
        empty_second=True,
        first=SEP,  # their packed text has <sep> after every entry, and no <cls>
    ),
}

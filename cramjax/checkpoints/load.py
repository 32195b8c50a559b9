"""A finished model, ready to use: vectors of texts, masked tokens, likelihoods.

>>> import cramjax
>>> model = cramjax.load("runs/quickstart")
>>> vectors_NxD = model.encode(["a first text", "a second one"])
>>> model.fill_mask("the <mask> of the sea", top=1)  # doctest: +ELLIPSIS
[[('...', 0...)]]

It comes from a workdir of cramjax, or from a folder with config.json, model.safetensors
and tokenizer.json: an export, or another project's model, as on the Hugging Face hub.
The vocabulary of the latter is reordered so that the special tokens have their ids of
`cramjax.tokens`; nothing else depends on where a model came from.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from cramjax import config as config_module
from cramjax import files, likelihood
from cramjax.checkpoints import convert
from cramjax.checkpoints import weights as weights_module
from cramjax.checkpoints.weights import PRETRAINED
from cramjax.config import ABSENT, Config, ModelConfig
from cramjax.data import tokenizer as tokenizer_module
from cramjax.data.corpus import of_run
from cramjax.errors import UserError, one_line
from cramjax.model.encoder import Encoder, on_any_device
from cramjax.model.layers import BASE
from cramjax.tokens import CLS, MASK, PAD, SEP, SPECIAL_TOKENS
from cramjax.training.pretrain import SUMMARY, read_checkpoint

BATCH = 64

# In both kinds of folder.
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = "model.safetensors"  # in another project's
AUTHORS = "crammedBERT"  # the model_type of the authors' checkpoints
OURS = "cramjax"  # and of what modeling_cramjax.py computes
BERT_TYPES = "bert.embeddings.token_type_embeddings.weight"
HINT = "a folder needs " + ", ".join((CONFIG, WEIGHTS, TOKENIZER))

# Keys of the model that have a name of their own in config.json of transformers.
HF_NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
}
# Keys that say how a model is computed, not what it computes.
HOW = {"dtype", "attention"}
SPECIAL = frozenset(SPECIAL_TOKENS).union(*tokenizer_module.NAMES.values())


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights and tokenizer.

    Predicting tokens raises a UserError if there is no masked-LM head.

    Attributes:
      model: its shape.
      params: of `encoder.MaskedLM`, or of `encoder.Encoder` if `has_head` is False.
      tokenizer: with the special tokens' ids of `cramjax.tokens`.
      has_head: whether it can predict tokens.
      first: id of the token that a text begins with, as it did in pretraining: <cls>
        if the corpus had it, otherwise the <sep> that ended the text before.
      empty_second: of its template in fine-tuning, see `glue.empty_second`.
      config: all settings of the run; None for other projects' models.
    """

    model: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    has_head: bool
    first: int
    empty_second: bool
    config: Config | None

    def ids(self, text: str) -> list[int]:
        """Returns a text's tokens between the first one and <sep>, cut if too long."""
        return self._chunks(text)[0]

    def _chunks(self, text: str) -> list[list[int]]:
        """Returns rows of at most `model.max_length` tokens that make up a text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        room = self.model.max_length - 2
        starts = range(0, max(len(ids), 1), room)
        return [[self.first, *ids[start : start + room], SEP] for start in starts]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 vectors_NxD: the mean of each text's hidden states.

        A text that is too long for the model is cut into chunks, each of them between
        the first token and <sep>; the mean is over the tokens of all chunks.
        """
        if isinstance(texts, str):
            raise UserError(f"encode takes a list of texts: pass [{texts[:20]!r}]")
        chunks = [
            (i, row) for i, text in enumerate(texts) for row in self._chunks(text)
        ]
        owner_R = np.array([i for i, _ in chunks], int)
        length_R = np.array([len(row) for _, row in chunks])
        fraction_R = length_R / np.bincount(owner_R, length_R)[owner_R]
        vectors_NxD = np.zeros((len(texts), self.model.width), np.float32)
        for places, tokens_BxL in likelihood.batches(
            [row for _, row in chunks], BATCH, self.model.max_length
        ):
            means_BxD = _mean(self.model, self.params, tokens_BxL)
            parts_BxD = fraction_R[places, None] * np.asarray(means_BxD)[: len(places)]
            np.add.at(vectors_NxD, owner_R[places], parts_BxD)
        return vectors_NxD

    def fill_mask(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the likeliest tokens for each "<mask>" in a text.

        Args:
          text: with one or more "<mask>" (or "[MASK]").
          top: how many tokens.

        Returns:
          For each mask the (token, probability) pairs, likeliest first.

        Raises:
          UserError: there is no mask, or the text is too long: cut, it could lose one.
        """
        self._require_head()
        parts = text.replace("[MASK]", "<mask>").split("<mask>")
        if len(parts) < 2:
            raise UserError(f"{text!r} has no <mask>: write one for a missing word")
        row, places = [self.first], []
        for number, part in enumerate(parts):
            if number:
                places.append(len(row))
                row.append(MASK)
            if number < len(parts) - 1:  # a byte-level token begins with its space
                part = part.rstrip()
            row += self.tokenizer.encode(part, add_special_tokens=False).ids
        row.append(SEP)
        if len(row) > self.model.max_length:
            raise UserError(
                f"the text has {len(row)} tokens, more than the model's "
                f"{self.model.max_length}: shorten it"
            )
        tokens_1xL = likelihood.padded([row], self.model.max_length)
        logits_PxV = likelihood.logits(
            self.model, self.params, tokens_1xL, np.array([places])
        )[0]
        vocabulary = self.tokenizer.get_vocab()
        # Sorted: the tokenizer's order changes with every call, and so would the sums.
        answers = sorted(i for token, i in vocabulary.items() if token not in SPECIAL)
        answers_A = np.array(answers)
        probs_PxA = np.asarray(jax.nn.softmax(logits_PxV[:, answers_A]))
        decode = functools.partial(self.tokenizer.decode, skip_special_tokens=False)
        return [
            [
                (decode([int(answers_A[i])]).strip(), float(probs_A[i]))
                for i in np.argsort(-probs_A)[:top]
            ]
            for probs_A in probs_PxA
        ]

    def pseudo_log_likelihoods(self, texts: Sequence[str]) -> np.ndarray:
        """Returns log-probabilities_N, see `likelihood.pseudo_log_likelihoods`.

        Texts that are too long for the model are cut, with one UserWarning.
        """
        self._require_head()
        chunks = [self._chunks(text) for text in texts]
        if cut := sum(len(rows) > 1 for rows in chunks):
            warnings.warn(
                f"{cut:,} of {len(texts):,} texts are longer than the model's "
                f"{self.model.max_length} tokens and were cut: split them, or the "
                "result leaves out their ends",
                stacklevel=2,
            )
        rows = [rows[0] for rows in chunks]
        return likelihood.pseudo_log_likelihoods(self.model, self.params, rows)

    def _require_head(self) -> None:
        if not self.has_head:
            raise UserError("this model has no masked-LM head: it cannot predict words")


@functools.partial(jax.jit, static_argnums=0)
def _mean(model: ModelConfig, params: Any, tokens_BxL: jax.Array) -> jax.Array:
    mask_BxL = tokens_BxL != PAD
    hidden_BxLxD = Encoder(model).apply({"params": params}, tokens_BxL, mask_BxL)
    weights_BxL = mask_BxL / mask_BxL.sum(axis=1, keepdims=True)
    return jnp.einsum("BLD,BL->BD", hidden_BxLxD.astype(jnp.float32), weights_BxL)


def load(
    path: str | Path, weights: str = PRETRAINED, step: int | None = None
) -> Pretrained:
    """Reads a model.

    Args:
      path: a workdir of `cramjax.main`, or a folder with another project's checkpoint,
        see `load_foreign`.
      weights: "pretrained", or an average that was on in the run: "ema" or "lawa".
      step: of a checkpoint that the run has kept, finished or not; None = of the
        finished run.

    Raises:
      UserError: it is neither, or not finished, or does not have these weights, or a
        file is damaged.
    """
    folder = Path(path).expanduser()
    if (folder / WEIGHTS).exists():
        if weights != PRETRAINED or step is not None:
            raise UserError(
                f"{folder} is another project's checkpoint, which has neither averages "
                "nor steps: leave out weights= and step="
            )
        return load_foreign(folder)
    if not folder.exists():
        raise UserError(f"{folder} holds no finished model: no such folder")
    if step is None and not (folder / SUMMARY).exists():
        raise UserError(
            f"{folder} holds no finished model: neither {SUMMARY}, as a workdir of "
            f"cramjax, nor {WEIGHTS}, as another project's; step=NUMBER loads a "
            "checkpoint of an unfinished run"
        )
    values = config_module.read_recorded(folder / CONFIG, "bring it back")
    config = config_module.from_dict(values)
    known = weights_module.names(config)
    if weights not in known:
        raise UserError(f"weights={weights!r}: {folder} has only {', '.join(known)}")
    if step is None:
        named_params = weights_module.read_run(config, folder, [weights])
    else:
        named_params = read_checkpoint(config, folder, step)
    return Pretrained(
        on_any_device(config.model, dtype="float32"),
        named_params[weights],
        of_run(folder)[0],
        has_head=True,
        first=CLS if config.data.cls else SEP,
        empty_second=config.glue.empty_second,
        config=config,
    )


def load_foreign(folder: Path) -> Pretrained:
    """Reads an export, or a checkpoint of BERT, of ModernBERT or of the authors.

    Raises:
      UserError: a file is missing or damaged, or the model is of another kind or uses
        what this encoder lacks.
    """
    try:
        return _load_foreign(folder)
    except UserError:
        raise
    except Exception as error:  # the JSON of others can have any values
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{folder} cannot be read ({what}): {HINT}") from error


def _load_foreign(folder: Path) -> Pretrained:
    facts = files.read_json(folder / CONFIG, HINT)
    kind = facts.get("model_type")
    if kind not in _KEYS:
        raise UserError(
            f"{folder / CONFIG}: model_type is {kind!r}, not one of {', '.join(_KEYS)}"
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder / WEIGHTS} is missing: {HINT}")
    tensors = convert.load_tensors(folder / WEIGHTS)
    if len(tensors.get(BERT_TYPES, ())) == 1 and not tensors[BERT_TYPES].any():
        del tensors[BERT_TYPES]  # our export of a model without token types
        facts["type_vocab_size"] = 0
    of_head = ("cls.predictions.", "head.")
    has_head = kind == AUTHORS or any(name.startswith(of_head) for name in tensors)
    try:
        keys = _KEYS[kind](facts)
        if kind == OURS:  # its head may be the tied decoder alone, as the authors'
            has_head = "CramjaxForMaskedLM" in facts["architectures"]
    except KeyError as error:
        raise UserError(f"{folder / CONFIG} has no {error}") from error
    if not has_head:
        keys |= {"head_transform": False, "decoder_bias": False}
    keys |= {"dtype": "float32"}
    model = config_module.model_from_dict(config_module.to_dict(ModelConfig()) | keys)
    largest = max(value for value in keys.values() if type(value) is int)
    numbers = sum(tensor.size for tensor in tensors.values())
    # It would take time or memory without end.
    if model.layers > len(tensors) or largest > numbers:
        raise UserError(f"{folder / CONFIG}: its model is larger than {WEIGHTS}")
    if kind == "modernbert":  # `norm_bias` may be false: the same as biases of 0
        norms = (name for name in tensors if name.endswith("norm.weight"))
        zeros = {f"{n.removesuffix('weight')}bias": 0 * tensors[n] for n in norms}
        tensors = zeros | tensors
    params = convert.read(kind, tensors, model, has_head)
    tokenizer, old_ids_V = tokenizer_module.imported(
        folder / TOKENIZER, model.vocab_size, HINT
    )
    params["embedding"]["word"] = params["embedding"]["word"][old_ids_V]
    if "decoder_bias" in params:
        params["decoder_bias"] = params["decoder_bias"][old_ids_V]
    template = Tokenizer.from_file(str(folder / TOKENIZER)).encode("").tokens
    names = tokenizer_module.NAMES
    has_cls = bool(set(template[:1]) & set(names["<cls>"]))
    has_sep = [token in names["<sep>"] for token in template[:2]] == [True, True]
    return Pretrained(
        model,
        params,
        tokenizer,
        has_head,
        # The authors' packed text has <sep> after every entry, and no <cls>.
        first=SEP if has_sep or (kind == AUTHORS and not has_cls) else CLS,
        empty_second=facts.get(OURS, {}).get("empty_second", kind == AUTHORS),
        config=None,
    )


def _hf_sizes(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: facts[theirs] for ours, theirs in HF_NAMES.items()}


def _bert(facts: Mapping[str, Any]) -> dict[str, Any]:
    _require(facts, position_embedding_type="absolute", hidden_act="gelu")
    return _hf_sizes(facts) | {
        **convert.BERT_FORM,
        "head_transform": True,
        "ffn_width": facts["intermediate_size"],
        "token_types": facts["type_vocab_size"],
        "norm_eps": facts["layer_norm_eps"],
        "decoder_bias": True,
    }


def _modernbert(facts: Mapping[str, Any]) -> dict[str, Any]:
    _require(facts, hidden_activation="gelu")
    bias = bool(facts.get("mlp_bias", False))
    _require(facts, attention_bias=bias, classifier_bias=bias)
    return _hf_sizes(facts) | {
        **convert.MODERNBERT_FORM,
        "head_transform": True,
        **_reach(facts),
        "ffn_width": 2 * facts["intermediate_size"],
        "norm_eps": facts.get("norm_eps", 1e-5),
        "qkv_bias": bias,
        "linear_bias": bias,
        "decoder_bias": bool(facts.get("decoder_bias", True)),
    }


def _reach(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that say how far ModernBERT's layers attend, and rotary bases.

    The defaults are those of Hugging Face's library. Version 4 of it counts the layers
    between global ones; version 5 lists all layers, and the bases by kind of layer.
    """
    everywhere, nearby = "full_attention", "sliding_attention"
    every, layers = facts.get("global_attn_every_n_layers", 3), facts.get("layer_types")
    if layers:
        later = (i for i, kind in enumerate(layers) if i and kind == everywhere)
        every = next(later, len(layers))
        regular = [nearby if i % every else everywhere for i in range(len(layers))]
        _require(facts, layer_types=regular)
    bases = {everywhere: "global_rope_theta", nearby: "local_rope_theta"}
    defaults = {everywhere: 160_000.0, nearby: BASE}
    for kind, name in bases.items():
        rotary = (facts.get("rope_parameters") or {}).get(kind) or {}
        _require(rotary, rope_type="default")
        bases[kind] = float(
            rotary.get("rope_theta") or facts.get(name) or defaults[kind]
        )
    return {
        "rotary_base": bases[everywhere],
        "global_every": every,
        "local_window": facts.get("local_attention", 128) // 2,
        "local_rotary_base": bases[nearby],
    }


def _ours(facts: Mapping[str, Any]) -> dict[str, Any]:
    absent = {name.removeprefix("model."): value for name, value in ABSENT.items()}
    names = {f.name for f in dataclasses.fields(ModelConfig)} - HOW
    values = absent | facts | _hf_sizes(facts)
    return {name: values[name] for name in names}


def _crammed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The final model of arXiv 2212.14034, section 4.2, of any size.

    All other keys have their defaults. Other biases, norms or heads would show in the
    tensors; what would not is required here.
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
        "norm_eps": arch["norm_eps"],
    }


def _require(facts: Mapping[str, Any], **values: Any) -> None:
    for key, value in values.items():
        if facts.get(key, value) != value:
            raise UserError(
                f"{CONFIG}: {key} is {facts[key]!r}, this encoder has {value!r} only"
            )


# By the model_type of config.json: its keys of a `ModelConfig`.
_KEYS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "bert": _bert,
    "modernbert": _modernbert,
    AUTHORS: _crammed,
    OURS: _ours,
}

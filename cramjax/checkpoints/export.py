"""A finished model or a saved classifier as a folder for Hugging Face's transformers.

A model of the form of their BERT or ModernBERT becomes one of theirs. Every other one
takes its own code along, modeling_cramjax.py, and needs trust_remote_code=True. The
folder is for version 5 of transformers, and needs nothing of this project.
"""

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors

from cramjax import files, likelihood
from cramjax.checkpoints import classifier, convert
from cramjax.checkpoints import load as formats
from cramjax.checkpoints.classifier import SavedClassifier
from cramjax.checkpoints.load import Pretrained, load
from cramjax.checkpoints.weights import PRETRAINED
from cramjax.config import GlueConfig, ModelConfig, to_dict
from cramjax.errors import UserError
from cramjax.glue.evaluate import RESULTS
from cramjax.glue.tables import conditions
from cramjax.tokens import CLS, MASK, PAD, SEP, SPECIAL_TOKENS
from cramjax.training.pretrain import SUMMARY
from cramjax.version import code_version

CODE = "modeling_cramjax"  # the module beside this one, which is copied
TOLERANCE = 1e-4  # of logits in float32
UNK = SPECIAL_TOKENS.index("<unk>")
ROLES = {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK}
BERT = convert.BERT_FORM | {"activation": "gelu"}
BERT_WITH_HEAD = BERT | {"head_transform": True, "decoder_bias": True}
MODERNBERT = convert.MODERNBERT_FORM | {"activation": "gelu", "head_transform": True}
CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [cramjax]
---
# {name}

    from transformers import pipeline  # version 5
    pipeline("{task}", model="{name}"{trust})("{example}")

{facts}
"""

Source = Pretrained | SavedClassifier
# The class that computes a model, what is particular in its config.json, its tensors.
Translated = tuple[str, dict[str, Any], dict[str, np.ndarray]]


def export(
    checkpoint: str | Path, to: str | Path, weights: str = PRETRAINED
) -> tuple[str, float | None]:
    """Writes the folder `to`, all of it or nothing.

    Args:
      checkpoint: the workdir of a finished run, or the folder of a saved classifier.
      to: a folder that is empty or does not exist.
      weights: of a run, see `load`.

    Returns:
      The class that computes it, and by how much the logits of some made-up texts
      differ from ours at most; None where torch and transformers 5 are missing.

    Raises:
      UserError: `checkpoint` is neither, `to` cannot be used, or the logits differ.
    """
    origin, to = Path(checkpoint).expanduser(), Path(to).expanduser().resolve()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to={to} exists and is not empty: pass another folder")
    source: Source
    if classifier.is_saved(origin):
        source = classifier.load(origin)
        if weights != PRETRAINED:
            raise UserError(
                f"--weights={weights}: leave it out; {origin} is a classifier and has "
                "no averages"
            )
        if len(source.columns) > 2:
            raise UserError(f"--checkpoint={origin}: transformers takes 1 or 2 texts")
        name, facts, tensors = _classifier(source)
        about = _facts_of_classifier(source, origin)
    else:
        source = load(origin, weights)
        if source.config is None:
            raise UserError(
                f"--checkpoint={origin} is not a workdir of cramjax, but another "
                "project's model or an export: copy the folder instead"
            )
        name, facts, tensors = _masked_lm(source)
        about = _facts_of_run(source, origin, weights)
    facts |= {
        "architectures": [name],
        "dtype": "float32",
        "initializer_range": source.model.init_std,
        **{k: getattr(source.model, name) for name, k in formats.HF_NAMES.items()},
        **{f"{role}_token_id": ROLES[role] for role in ("pad", "cls", "sep")},
        "bos_token_id": CLS,
        "eos_token_id": SEP,
        formats.OURS: {"empty_second": source.empty_second, "code": code_version()},
    }
    partial = to.with_name(f"{to.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--to={to} cannot be written: {error.strerror}") from error
    try:
        files.write_json(partial / formats.CONFIG, facts)
        convert.write_tensors(partial / formats.WEIGHTS, tensors, format="pt")
        _write_tokenizer(partial, source)
        if has_code(name):
            shutil.copy(Path(__file__).with_name(f"{CODE}.py"), partial)
        _write_card(partial, to.name, name, about)
        if isinstance(source, Pretrained):
            _write_pooling(partial, source.model.width)
        difference = _difference(partial, name, source)
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return name, difference


def has_code(architecture: str) -> bool:
    """Returns whether transformers needs trust_remote_code=True for a class."""
    return architecture.startswith("Cramjax")


def _masked_lm(source: Pretrained) -> Translated:
    model, params = source.model, source.params
    if _has(model, BERT_WITH_HEAD):
        tensors = convert.write("bert", params, model) | _no_types(model)
        return "BertForMaskedLM", _bert_facts(model), tensors
    if _has(model, MODERNBERT | {"qkv_bias": model.linear_bias}):
        tensors = convert.write("modernbert", params, model)
        return "ModernBertForMaskedLM", _modernbert_facts(model), tensors
    facts = _own_facts(model, source.config.glue)
    return "CramjaxForMaskedLM", facts, convert.write(formats.OURS, params, model)


def _classifier(source: SavedClassifier) -> Translated:
    model = dataclasses.replace(source.model, late_masks=0)  # no row has a <mask>
    heads = {part: source.params[part] for part in ("pooler", "head")}
    encoder = {k: v for k, v in source.params.items() if k not in heads}
    stock = source.head_width == model.width and source.pooling == "cls"
    if stock and _has(model, BERT):
        family, prefix, pooler = "Bert", "bert.", "bert.pooler.dense"
        facts = _bert_facts(model)
        tensors = convert.write("bert", encoder, model, head=False)
    else:
        family, prefix, pooler = "Cramjax", "model.", "pooler"
        facts = _own_facts(model, source)
        tensors = convert.write(formats.OURS, encoder, model, head=False)
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    if family == "Bert":
        tensors |= _no_types(model)
    for name, part in zip((pooler, "classifier"), heads.values(), strict=True):
        kernel_ExD = np.asarray(part["kernel"])
        tensors[f"{name}.weight"] = np.ascontiguousarray(kernel_ExD.T)
        tensors[f"{name}.bias"] = np.asarray(part["bias"])
    labels = source.labels or ("value",)
    facts["id2label"] = {str(i): label for i, label in enumerate(labels)}
    facts["label2id"] = {label: i for i, label in enumerate(labels)}
    kind = "single_label_classification" if source.labels else "regression"
    facts["problem_type"] = kind
    return f"{family}ForSequenceClassification", facts, tensors


def _no_types(model: ModelConfig) -> dict[str, np.ndarray]:
    """Returns the one token type that BERT has at least."""
    types_1xD = np.zeros((1, model.width), np.float32)
    return {} if model.token_types else {formats.BERT_TYPES: types_1xD}


def _has(model: ModelConfig, form: Mapping[str, Any]) -> bool:
    return all(getattr(model, key) == value for key, value in form.items())


def _bert_facts(model: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "intermediate_size": model.ffn_width,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_eps,
        "type_vocab_size": model.token_types or 1,
    }


def _modernbert_facts(model: ModelConfig) -> dict[str, Any]:
    """Returns also what is the same in all: the defaults are ModernBERT-base's."""
    kinds = {0: "full_attention", model.local_window: "sliding_attention"}
    bases = (model.rotary_base, model.local_rotary_base)
    biases = ("attention_bias", "mlp_bias", "classifier_bias")
    return {
        "model_type": "modernbert",
        "intermediate_size": model.ffn_width // 2,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_eps": model.norm_eps,
        "norm_bias": True,
        **dict.fromkeys(biases, model.linear_bias),
        "decoder_bias": model.decoder_bias,
        "layer_types": [kinds[model.reach(i)[0]] for i in range(model.layers)],
        "local_attention": 2 * model.local_window,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base}
            for kind, base in zip(kinds.values(), bases, strict=True)
        },
    }


def _own_facts(
    model: ModelConfig, head: SavedClassifier | GlueConfig
) -> dict[str, Any]:
    left_out = formats.HOW | formats.HF_NAMES.keys()
    classes = {"AutoConfig": "CramjaxConfig", "AutoModel": "CramjaxModel"}
    for task in ("ForMaskedLM", "ForSequenceClassification"):
        classes[f"AutoModel{task}"] = f"Cramjax{task}"
    return {
        "model_type": formats.OURS,
        "auto_map": {auto: f"{CODE}.{name}" for auto, name in classes.items()},
        **{k: v for k, v in to_dict(model).items() if k not in left_out},
        "head_width": head.head_width,
        "pooling": head.pooling,
    }


def _write_tokenizer(folder: Path, source: Source) -> None:
    """Writes the tokenizer with the template of the rows that the model has seen."""
    model, length = source.model, source.model.max_length
    found = {role: source.tokenizer.id_to_token(i) for role, i in ROLES.items()}
    names = {role: token for role, token in found.items() if token in formats.SPECIAL}
    cls, sep, second = names["cls"], names["sep"], int(model.token_types > 1)
    first, last = cls, sep
    if isinstance(source, Pretrained):
        first = cls if source.first == CLS else sep
    else:
        length = source.max_length
        last += f" {sep}:{second}" if source.empty_second else ""
    tokenizer = Tokenizer.from_str(source.tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {sep} $B:{second} {sep}:{second}",
        special_tokens=[(cls, CLS), (sep, SEP)],
    )
    files.write_text(folder / formats.TOKENIZER, tokenizer.to_str())
    types = ["token_type_ids"] if model.token_types else []
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # others ignore the template
        "model_max_length": length,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in names.items()},
    }
    files.write_json(folder / "tokenizer_config.json", facts)


def _write_pooling(folder: Path, width: int) -> None:
    """Writes what sentence-transformers needs for the vectors of `encode`."""
    base, pooling = "sentence_transformers.models", folder / "1_Pooling"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{base}.Transformer"},
        {"idx": 1, "name": "1", "path": pooling.name, "type": f"{base}.Pooling"},
    ]
    files.write_json(folder / "modules.json", modules)
    pooling.mkdir()
    facts = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    files.write_json(pooling / formats.CONFIG, facts)


def _difference(folder: Path, name: str, source: Source) -> float | None:
    """Returns the difference that `export` returns, unless it is too large."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    if int(transformers.__version__.partition(".")[0]) < 5:
        return None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    library = transformers
    if has_code(name):
        # Not the copy in the folder, beside which Python would write its bytecode.
        path = Path(__file__).with_name(f"{CODE}.py")
        spec = importlib.util.spec_from_file_location(CODE, path)
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
    theirs = getattr(library, name).from_pretrained(folder).eval()
    model, generator = source.model, np.random.default_rng(0)
    room = model.max_length // 2  # for one of two texts
    ids_BxL = generator.integers(len(SPECIAL_TOKENS), model.vocab_size, (4, room))
    decode, lengths = source.tokenizer.decode, np.linspace(1, room, 4).astype(int)
    texts = [decode(row_L[:n]) for row_L, n in zip(ids_BxL, lengths, strict=True)]
    late = isinstance(source, Pretrained) and model.late_masks
    if isinstance(source, Pretrained):
        columns = [texts]
        tokens_BxL = likelihood.padded(list(map(source.ids, texts)), model.max_length)
        places_P = np.arange(tokens_BxL.shape[1])
        if late:  # there are logits of <mask> only
            tokens_BxL[:, 1], places_P = MASK, places_P[1:2]
        places_BxP = np.tile(places_P, (len(texts), 1))
        ours = likelihood.logits(model, source.params, tokens_BxL, places_BxP)
        ours = np.asarray(ours)[tokens_BxL[:, places_P] != PAD]
    else:
        columns = [texts, texts[::-1]][: len(source.columns)]
        ours = source.outputs(list(zip(*columns, strict=True)))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")
    compared_BxL = inputs["attention_mask"].bool()
    if late:
        inputs["input_ids"][:, 1] = MASK
        compared_BxL = inputs["input_ids"] == MASK
    with torch.inference_mode():
        logits = theirs(**inputs).logits
    if isinstance(source, Pretrained):
        logits = logits[compared_BxL]
    same = logits.shape == ours.shape  # otherwise the tokens differ
    difference = float(np.abs(logits.numpy() - ours).max()) if same else np.inf
    if not difference <= TOLERANCE:
        raise UserError(
            f"the logits of the {name} differ from ours by {difference:.1e}, more than "
            f"{TOLERANCE:g}: nothing was exported; please report this"
        )
    return difference


def _write_card(folder: Path, title: str, name: str, facts: Mapping[str, str]) -> None:
    is_masked_lm = name.endswith("MaskedLM")
    card = CARD.format(
        task="fill-mask" if is_masked_lm else "text-classification",
        example="the <mask> of the sea" if is_masked_lm else "a text",
        trust=", trust_remote_code=True" if has_code(name) else "",
        name=title,
        facts="\n".join(f"- **{key}**: {text}" for key, text in facts.items()),
    )
    files.write_text(folder / "README.md", card)


def _facts_of_classifier(source: SavedClassifier, origin: Path) -> dict[str, str]:
    values = files.read_json(origin / formats.CONFIG, classifier.HINT)
    return {
        "fine-tuned from": values["checkpoint"],
        "rows": f"{values['train_rows']:,} for training, {values['dev_rows']:,} dev",
        "input": " and ".join(source.columns),
        "output": ", ".join(source.labels) or "a number",
        "score": values["saved"],
    }


def _facts_of_run(source: Pretrained, origin: Path, weights: str) -> dict[str, str]:
    config, model = source.config, source.model
    summary = files.read_json(origin / SUMMARY, "bring it back")
    losses = {PRETRAINED: summary["held_out_loss"], **summary.get("averages", {})}
    start = f"continued from {config.init_from}; " if config.init_from else ""
    track, scores = conditions(config).removeprefix("Track: "), ""
    if (origin / RESULTS).exists():
        results = files.read_json(origin / RESULTS, "delete it to score again")
        scores = "; ".join(
            f"{entry['title']} {entry['starts'][weights]['median']:.1f} "
            f"({entry['metric']})"
            for entry in results["tasks"].values()
            if weights in entry["starts"]
        )
    return {
        "text": ", ".join(config.data.sources),
        "licence of the text": config.data.licence or "not stated",
        "model": f"{summary['parameters']:,} parameters: {model.layers} layers, width "
        f"{model.width}, {model.positions} positions, vocabulary {model.vocab_size:,}, "
        f"sequences of {model.max_length} tokens",
        "recipe": f"{start}masked language modelling after arXiv 2212.14034, "
        f"{config.objective.mask_rate:.0%} masked, {config.optimizer.name} at "
        f"{config.optimizer.learning_rate:g}, batches of {config.batch.sequences:,}; "
        f"cramjax {summary.get('code', '')}",
        "budget": f"{summary['tokens']:,} tokens in {summary['elapsed_s'] / 3600:.2f} "
        f"hours on {summary['device']}",
        "held-out loss": f"{losses[weights]:.3f} nats per masked token ({weights}), "
        f"{summary['unigram_entropy']:.3f} by token frequencies alone",
        "scores": f"{scores}; medians on dev sets, in percent" if scores else "none",
        "track": track,
    }

"""The weights that pretraining begins with if not with random ones."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.checkpoints.load import CONFIG, TOKENIZER, load
from cramjax.config import Config, ModelConfig, from_dict, read_recorded, require
from cramjax.config.data import IMPORTED, TOKENIZER_KEYS
from cramjax.config.model import CHOSEN_MODEL_KEYS
from cramjax.errors import UserError
from cramjax.tokens import CLS
from cramjax.training.pretrain import SUMMARY

TABLE = "embedding.positions.table"  # of learned positions


def begin(
    config: Config, workdir: Path | None = None
) -> tuple[Config, dict[str, Any] | None]:
    """Returns the config with the model and tokenizer of `init_from`, and its weights.

    The weights are parameters of `encoder.MaskedLM` on the host; None if they are
    random. If pretraining is finished in the workdir, they are None, too, and the
    folder is not read.

    Raises:
      UserError: the folder holds no model, or one that does not fit the config, or it
        has changed since the run began.
    """
    source = config.init_from
    if not source:
        without = "'' without config.init_from"
        require(not config.init_hash, "init_hash", config.init_hash, without)
        return config, None
    if workdir and (workdir / SUMMARY).exists():
        run = from_dict(read_recorded(workdir / CONFIG, "bring it back"))
        return _like(config, run.model, vars(run.data), run.init_hash), None
    try:
        found = load(source)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    text = {"tokenizer_kind": IMPORTED, "normalizer": (), "sep": True}
    text["cls"] = found.first == CLS
    if found.config:
        text = dict(vars(found.config.data))
    text["tokenizer"] = str(Path(source, TOKENIZER))
    flat = flatten_dict(found.params, sep=".")
    flat = {name: np.asarray(array) for name, array in sorted(flat.items())}
    digest = hashlib.sha256()
    for array in flat.values():
        digest.update(array.tobytes())
    found_hash = digest.hexdigest()[:16]
    known, those = config.init_hash in ("", found_hash), f"of the weights in {source}"
    require(known, "init_hash", config.init_hash, f"{found_hash!r}, the hash {those}")
    config = _like(config, found.model, text, found_hash)
    if TABLE in flat:
        positions, length = len(flat[TABLE]), config.model.max_length
        most = f"at most {positions}, the learned positions of config.init_from"
        require(length <= positions, "model.max_length", length, most)
        flat[TABLE] = flat[TABLE][:length]
    return config, unflatten_dict(flat, sep=".")


def _like(
    config: Config, model: ModelConfig, text: Mapping[str, Any], found_hash: str
) -> Config:
    """Returns `config` with the shape of a model, and with its tokenizer."""
    free = {name: getattr(config.model, name) for name in CHOSEN_MODEL_KEYS}
    of_text = {name: text[name] for name in TOKENIZER_KEYS}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, **free),
        data=dataclasses.replace(config.data, **of_text),
        init_hash=found_hash,
    )

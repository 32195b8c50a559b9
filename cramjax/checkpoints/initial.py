"""The weights that pretraining begins with if not with random ones."""

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.checkpoints.load import CONFIG, TOKENIZER, load
from cramjax.config import (
    Config,
    DataConfig,
    ModelConfig,
    from_dict,
    read_recorded,
    require,
)
from cramjax.config.data import IMPORTED
from cramjax.errors import UserError
from cramjax.tokens import CLS
from cramjax.training.pretrain import SUMMARY

logger = logging.getLogger(__name__)

# Keys of the model that stay the config's, and those of the text that do not.
FREE = ("dtype", "attention", "max_length")
OF_TEXT = ("tokenizer", "tokenizer_kind", "normalizer", "cls", "sep")
TABLE = "embedding.positions.table"  # of learned positions


def check_given(config: Config, given: set[str]) -> None:
    """Refuses keys that were given on the command line, but follow from `init_from`.

    Raises:
      UserError: it names the first of them.
    """
    free = {f"model.{name}" for name in FREE}
    decided = {f"data.{name}" for name in OF_TEXT}
    for key in sorted(given - free) if config.init_from else ():
        if key.startswith("model.") or key in decided:
            raise UserError(
                f"--config.{key}: it is that of config.init_from={config.init_from}; "
                "leave it out"
            )


def begin(config: Config, workdir: Path) -> tuple[Config, dict[str, Any] | None]:
    """Returns the config with the model and tokenizer of `init_from`, and its weights.

    The weights are parameters of `encoder.MaskedLM` on the host; None if they are
    random. If pretraining is finished, they are None, too, and the folder is not read.

    Raises:
      UserError: the folder holds no model, or one that does not fit the config, or it
        has changed since the run began.
    """
    source = config.init_from
    if not source:
        without = "'' without config.init_from"
        require(not config.init_hash, "init_hash", config.init_hash, without)
        return config, None
    if (workdir / SUMMARY).exists():
        run = from_dict(read_recorded(workdir / CONFIG, "bring it back"))
        return _like(config, run.model, run.data, run.init_hash), None
    try:
        found = load(source)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    of_text = {"tokenizer": str(Path(source, TOKENIZER))}
    if not found.config:
        of_text |= {"tokenizer_kind": IMPORTED, "normalizer": ()}
        of_text |= {"cls": found.first == CLS, "sep": True}
    data = dataclasses.replace(
        found.config.data if found.config else config.data, **of_text
    )
    flat = flatten_dict(found.params, sep=".")
    flat = {name: np.asarray(array) for name, array in sorted(flat.items())}
    digest = hashlib.sha256()
    for array in flat.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    found_hash = digest.hexdigest()[:16]
    if config.init_hash not in ("", found_hash):
        raise UserError(
            f"config.init_from: the weights in {source} have the hash {found_hash}, "
            f"not config.init_hash={config.init_hash}: bring those back"
        )
    config = _like(config, found.model, data, found_hash)
    if TABLE in flat:
        positions, length = len(flat[TABLE]), config.model.max_length
        most = f"at most {positions}, the learned positions of config.init_from"
        require(length <= positions, "model.max_length", length, most)
        flat[TABLE] = flat[TABLE][:length]
    logger.info(
        f"init_from: {source}: {sum(x.size for x in flat.values()):,} parameters, a "
        f"vocabulary of {found.model.vocab_size:,}"
    )
    return config, unflatten_dict(flat, sep=".")


def _like(
    config: Config, model: ModelConfig, data: DataConfig, found_hash: str
) -> Config:
    """Returns `config` with the shape of a model, and with its tokenizer."""
    free = {name: getattr(config.model, name) for name in FREE}
    of_text = {name: getattr(data, name) for name in OF_TEXT}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, **free),
        data=dataclasses.replace(config.data, **of_text),
        init_hash=found_hash,
    )

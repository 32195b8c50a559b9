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
from safetensors.numpy import save
from tokenizers import Tokenizer, processors

from cramjax import files, likelihood
from cramjax.checkpoints import classifier, convert
from cramjax.checkpoints.classifier import SavedClassifier
from cramjax.checkpoints.load import (
    BERT_TYPES,
    CONFIG,
    OF_THE_DEVICE,
    OURS,
    SPECIAL,
    TOKENIZER,
    WEIGHTS,
    Pretrained,
    load,
)
from cramjax.checkpoints.weights import PRETRAINED
from cramjax.config import ModelConfig, to_dict
from cramjax.errors import UserError
from cramjax.glue.tables import conditions
from cramjax.markdown import table
from cramjax.model.encoder import Classifier, second_segment
from cramjax.model.layers import BASE
from cramjax.tokens import CLS, MASK, PAD, SEP, SPECIAL_TOKENS
from cramjax.training.pretrain import SUMMARY
from cramjax.version import code_version

CODE = "modeling_cramjax.py"
CARD = "README.md"
TOLERANCE = 1e-4  # of logits in float32
# In the order of transformers' names for them: pad_token, unk_token, ...
ROLES = {"pad": PAD, "unk": SPECIAL_TOKENS.index("<unk>"), "cls": CLS, "sep": SEP}
ROLES["mask"] = MASK


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      architecture: the class that computes it.
      difference: the largest one between its logits and ours, on made-up tokens; None
        if they were not compared, for lack of torch and transformers 5.
    """

    architecture: str
    difference: float | None

    @property
    def has_code(self) -> bool:
        """Whether transformers needs trust_remote_code=True for it."""
        return self.architecture.startswith("Cramjax")


def export(
    checkpoint: str | Path, to: str | Path, weights: str = PRETRAINED
) -> Exported:
    """Writes the folder `to`, all of it or nothing.

    Args:
      checkpoint: the workdir of a finished run, or the folder of a saved classifier.
      to: a folder that is empty or does not exist.
      weights: of a run, see `load`.

    Raises:
      UserError: `checkpoint` is neither, `to` is something else, or the logits differ.
    """
    origin, to = Path(checkpoint).expanduser(), Path(to).expanduser()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to={to} is not empty: pass a new folder")
    if classifier.is_saved(origin):
        source, facts, make = classifier.load(origin), _of_classifier(origin), _classify
    else:
        source, facts, make = load(origin, weights), {}, _predict
        if source.config is None:
            raise UserError(
                f"--checkpoint={origin} is no workdir of cramjax: it can be copied as "
                "it is"
            )
    partial = to.absolute().with_name(f"{to.absolute().name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        exported = _write(partial, source)
        files.write_text(partial / CARD, _card(to.name, origin, source, exported))
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported

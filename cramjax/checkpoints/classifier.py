"""A fine-tuned classifier, or a regression, in a folder of its own.

import cramjax

classifier = cramjax.load_classifier("runs/letters")
classifier.predict(["a first text", "a second one"])

config.json has the fields of `SavedClassifier` but the two that have their own files,
weights.safetensors and tokenizer.json, and facts about the training.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from cramjax import files, likelihood
from cramjax.checkpoints import weights
from cramjax.config import FORMAT, ModelConfig, model_from_dict, read_recorded, to_dict
from cramjax.data import tokenizer as tokenizer_module
from cramjax.errors import UserError
from cramjax.glue.data import LENGTH_STEP, token_rows
from cramjax.model.encoder import Classifier, on_any_device
from cramjax.tokens import PAD

BATCH = 64
KIND = "classifier"  # in config.json
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
HINT = "pass the --workdir of a `cramjax finetune`"


@dataclasses.dataclass(frozen=True)
class SavedClassifier:
    """A classifier with its weights and tokenizer, which computes in float32.

    Attributes:
      model: the encoder's shape.
      params: of `encoder.Classifier`.
      tokenizer: with the special tokens' ids of `cramjax.tokens`.
      labels: in the order of the class ids; () = a regression.
      columns: the names of a row's texts in the training file, in order.
      head_width: of the head's hidden layer.
      pooling: "cls" or "mean", see `encoder.Classifier`.
      max_length: tokens of a row, special ones included; longer rows are cut.
      empty_second: of the rows' template, see `glue.data.encode`.
    """

    model: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    head_width: int
    pooling: str
    max_length: int
    empty_second: bool

    def outputs(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Returns float32 outputs_NxC of rows: logits, or the numbers (C = 1)."""
        rows = token_rows(texts, self.tokenizer, self.max_length, self.empty_second)
        classes = len(self.labels) or 1
        head = {"head_width": self.head_width, "pooling": self.pooling}
        module = Classifier(self.model, classes=classes, **head)
        outputs_NxC = np.zeros((len(rows), classes), np.float32)
        for places, tokens_BxL in likelihood.batches(
            rows, BATCH, self.max_length, LENGTH_STEP
        ):
            outputs_BxC = _outputs(module, self.params, tokens_BxL)
            outputs_NxC[places] = np.asarray(outputs_BxC)[: len(places)]
        return outputs_NxC

    def predict(
        self, texts: Sequence[str | tuple[str, ...]]
    ) -> list[tuple[str, float]] | list[float]:
        """Returns each row's (label, probability), or the number of a regression.

        Args:
          texts: of each row its text, or as many as there are `columns`.

        Raises:
          UserError: a row has another number of texts.
        """
        rows = [(row,) if isinstance(row, str) else tuple(row) for row in texts]
        count = len(self.columns)
        if isinstance(texts, str) or any(len(row) != count for row in rows):
            raise UserError(
                f"predict takes a list of rows, with {count} texts in each: "
                f"{', '.join(self.columns)}"
            )
        outputs_NxC = self.outputs(rows)
        if not self.labels:
            return outputs_NxC[:, 0].tolist()
        probs_NxC = np.asarray(jax.nn.softmax(outputs_NxC))
        best_N = probs_NxC.argmax(axis=1)
        labels = [self.labels[i] for i in best_N]
        return list(zip(labels, probs_NxC.max(axis=1).tolist(), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _outputs(module: Classifier, params: Any, tokens_BxL: jax.Array) -> jax.Array:
    return module.apply({"params": params}, tokens_BxL, tokens_BxL != PAD)


def save(folder: Path, classifier: SavedClassifier, facts: dict[str, Any]) -> None:
    """Writes the folder, config.json last: without it there is no classifier."""
    fields = vars(classifier) | {"model": to_dict(classifier.model)}
    params, tokenizer = fields.pop("params"), fields.pop("tokenizer").to_str()
    folder.mkdir(parents=True, exist_ok=True)
    weights.write(folder / weights.WEIGHTS, params)
    files.write_text(folder / TOKENIZER, tokenizer)
    fields["tokenizer_crc32"] = zlib.crc32(tokenizer.encode())
    content = {"format": FORMAT, "kind": KIND, **fields, **facts}
    files.write_record(folder / CONFIG, content)


def load(path: str | Path) -> SavedClassifier:
    """Reads what `save` wrote.

    Raises:
      UserError: the folder holds no classifier, or a file is damaged.
    """
    folder = Path(path).expanduser()
    if not is_saved(folder):
        raise UserError(f"{folder} holds no classifier: {HINT}")
    values = read_recorded(folder / CONFIG, HINT)
    known = values.get("tokenizer_crc32")  # earlier versions did not write it
    return SavedClassifier(
        model=on_any_device(model_from_dict(values["model"]), dtype="float32"),
        params=jax.device_put(weights.read(folder / weights.WEIGHTS)),
        tokenizer=tokenizer_module.load(folder / TOKENIZER, HINT, known),
        labels=tuple(values["labels"]),
        columns=tuple(values["columns"]),
        head_width=values["head_width"],
        pooling=values.get("pooling", "cls"),  # earlier versions had no other
        max_length=values["max_length"],
        empty_second=values["empty_second"],
    )


def is_saved(folder: Path) -> bool:
    """Returns whether a folder holds a classifier."""
    path = folder / CONFIG
    return path.is_file() and files.read_json(path, HINT).get("kind") == KIND

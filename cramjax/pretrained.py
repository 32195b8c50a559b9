"""A finished model, ready to use: vectors of texts, hidden words, likelihoods.

import cramjax

model = cramjax.load("runs/quickstart")
vectors_NxD = model.encode(["a first text", "a second one"])
model.fill_mask("the capital of france is <mask>.")
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from cramjax import config as config_module
from cramjax import imports, likelihood
from cramjax.config import Config, ModelConfig
from cramjax.data import tokenizer
from cramjax.data.corpus import TOKENIZER
from cramjax.data.tokenizer import CLS, MASK, PAD, SEP
from cramjax.errors import UserError
from cramjax.imports import SPECIAL
from cramjax.model.encoder import Encoder, on_any_device
from cramjax.training.pretrain import SUMMARY, read_back

BATCH = 64


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights and tokenizer.

    Attributes:
      model: its shape.
      params: of `encoder.MaskedLM`, or of `encoder.Encoder` if `has_head` is False.
      words: the tokenizer.
      has_head: whether it can predict words.
      first: id of the token that a text begins with, as it did in pretraining: <cls>
        if the corpus had it, otherwise the <sep> that ended the text before.
      config: all settings of the run; None for other projects' models.
    """

    model: ModelConfig
    params: dict[str, Any]
    words: Tokenizer
    has_head: bool
    first: int
    config: Config | None

    def ids(self, text: str) -> list[int]:
        """Returns a text's tokens between the first one and <sep>.

        Warns:
          UserWarning: it is too long for the model, and was cut.
        """
        return self._rows([text])[0]

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns `ids` of each text, with one warning for all."""
        room = self.model.max_length - 2
        rows = [self.words.encode(t, add_special_tokens=False).ids for t in texts]
        if cut := sum(len(ids) > room for ids in rows):
            warnings.warn(
                f"{cut:,} of {len(rows):,} texts are longer than the model's "
                f"{self.model.max_length} tokens and were cut: split them, or the "
                "result leaves out their ends",
                stacklevel=3,
            )
        return [[self.first, *ids[:room], SEP] for ids in rows]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 vectors_NxD: the mean of each text's hidden states.

        A text that is longer than `model.max_length` tokens is cut, where `fill_mask`
        refuses it.

        Warns:
          UserWarning: texts were cut; says how many.

        Raises:
          UserError: a single text, not a list of them.
        """
        if isinstance(texts, str):
            raise UserError(f"encode takes a list of texts: pass [{texts[:20]!r}]")
        rows = self._rows(texts)
        vectors_NxD = np.zeros((len(rows), self.model.width), np.float32)
        for places, tokens_BxL in likelihood.batches(
            rows, BATCH, self.model.max_length
        ):
            vectors_BxD = _mean(self.model, self.params, tokens_BxL)
            vectors_NxD[places] = np.asarray(vectors_BxD)[: len(places)]
        return vectors_NxD

    def fill_mask(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the likeliest words for each "<mask>" in a text.

        A text that is too long is refused, where `encode` cuts it: a mask could be cut
        off.

        Args:
          text: with one or more "<mask>" (or "[MASK]").
          top: how many words.

        Returns:
          For each mask the (word, probability) pairs, likeliest first.

        Raises:
          UserError: there is no mask, the text is too long, or the model cannot predict
            words.
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
            if number < len(parts) - 1:  # of byte-level words a space is the beginning
                part = part.rstrip()
            row += self.words.encode(part, add_special_tokens=False).ids
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
        vocabulary = self.words.get_vocab()
        # Sorted: the tokenizer's order is another at every call, and so were the sums.
        answers = sorted(i for word, i in vocabulary.items() if word not in SPECIAL)
        answers_A = np.array(answers)
        shares_PxA = np.asarray(jax.nn.softmax(logits_PxV[:, answers_A]))
        return [
            [
                (self._word(int(answers_A[i])), float(shares_A[i]))
                for i in np.argsort(-shares_A)[:top]
            ]
            for shares_A in shares_PxA
        ]

    def _word(self, token: int) -> str:
        """Returns a token as text; within a word it keeps its "##"."""
        return self.words.decode([token], skip_special_tokens=False).strip()

    def pseudo_log_likelihoods(self, texts: Sequence[str]) -> np.ndarray:
        """Returns log-probabilities_N, see `likelihood.pseudo_log_likelihoods`.

        Texts that are too long are cut, as by `encode`.

        Warns:
          UserWarning: texts were cut; says how many.

        Raises:
          UserError: the model cannot predict words.
        """
        self._require_head()
        rows = self._rows(texts)
        return likelihood.pseudo_log_likelihoods(self.model, self.params, rows)

    def _require_head(self) -> None:
        if not self.has_head:
            raise UserError("this model has no masked-LM head: it cannot predict words")


def load(path: str | Path) -> Pretrained:
    """Reads a finished model.

    Args:
      path: a workdir of `cramjax.main`, or a folder with another project's checkpoint,
        see `imports.load`.

    Raises:
      UserError: it is neither, or not finished, or a file is damaged.
    """
    folder = Path(path).expanduser()
    if (folder / imports.WEIGHTS).exists():
        other = imports.load(folder)
        return Pretrained(
            other.model,
            other.params,
            other.words,
            other.has_head,
            first=other.first,
            config=None,
        )
    if not (folder / SUMMARY).exists():
        raise UserError(
            f"{folder} holds no finished model: neither {SUMMARY}, as a workdir of "
            f"cramjax, nor {imports.WEIGHTS}, as another project's"
        )
    values = config_module.read_recorded(folder / "config.json", "bring it back")
    config = config_module.from_dict(values)
    weights, _ = read_back(config, folder)
    words = tokenizer.load(folder / TOKENIZER, "bring it back from the corpus's folder")
    # On a CPU it is float32 mathematics anyway.
    model = dataclasses.replace(on_any_device(config.model), dtype="float32")
    return Pretrained(
        model,
        weights["pretrained"],
        words,
        has_head=True,
        first=CLS if config.data.cls else SEP,
        config=config,
    )


@functools.partial(jax.jit, static_argnums=0)
def _mean(model: ModelConfig, params: Any, tokens_BxL: jax.Array) -> jax.Array:
    mask_BxL = tokens_BxL != PAD
    hidden_BxLxD = Encoder(model).apply({"params": params}, tokens_BxL, mask_BxL)
    weights_BxL = mask_BxL / mask_BxL.sum(axis=1, keepdims=True)
    return jnp.einsum("BLD,BL->BD", hidden_BxLxD.astype(jnp.float32), weights_BxL)

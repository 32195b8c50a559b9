"""The masked-LM loss on held-out text, comparable between runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from cramjax.config import Config
from cramjax.data import tokenizer
from cramjax.data.corpus import Corpus
from cramjax.model.encoder import MaskedLM, document_mask
from cramjax.model.fused import cross_entropies
from cramjax.training.masking import mask_tokens

KEY = 15  # of the masks: the same for every run, whatever its seed


def score(config: Config, weights: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
    """Scores a run's weights, see `train_step.weights`, on the held-out part.

    Returns:
      What `held_out` does for "pretrained", and "averages", {name: loss} of the others.
    """
    averages = {
        name: held_out(config, params, corpus)["loss"]
        for name, params in weights.items()
        if name != "pretrained"
    }
    return held_out(config, weights["pretrained"], corpus) | {"averages": averages}


def held_out(config: Config, params: Any, corpus: Corpus) -> dict[str, float]:
    """Scores parameters on the held-out part.

    All chosen positions are <mask>: none is given away by being kept, whatever the
    training's mixture. A <sep> is never asked for: the attention mask of
    `objective.separate_documents` shows where they are, and runs with and without it
    are to be compared. Each block's mask depends on its number in the held-out part
    alone, so runs with another micro-batch, masking rate, data order or seed are scored
    on the same question.

    Args:
      config: `validation` and `model` are read, and `micro_batch` for the batch size.
      params: of `encoder.MaskedLM`.
      corpus: `validation.max_blocks` blocks of its held-out part are used, evenly
        spread, so that every source has its fraction of them.

    Returns:
      "loss", nats per masked token; "accuracy", fraction of masked tokens that are the
      likeliest one; "bits_per_byte", bits needed for the masked tokens by the bytes of
      text they stand for, which also compares runs with different tokenizers.
    """
    blocks = corpus.held_out
    rows = min(len(blocks), config.validation.max_blocks)
    blocks_N = np.arange(rows) * len(blocks) // rows
    bytes_V = token_bytes(corpus.tokenizer)
    loss = correct = tokens = text_bytes = 0.0
    for start in range(0, rows, config.micro_batch):
        row_B = np.arange(start, start + config.micro_batch)
        ids_B = blocks_N[np.minimum(row_B, rows - 1)]
        scores = _scores(config, params, blocks.take(ids_B), ids_B.astype(np.int32))
        loss_BxP, correct_BxP, targets_BxP, weights_BxP = (
            np.asarray(x)[row_B < rows] for x in scores
        )
        loss += np.sum(loss_BxP * weights_BxP, dtype=np.float64)
        correct += np.sum(correct_BxP * weights_BxP, dtype=np.float64)
        tokens += weights_BxP.sum()
        text_bytes += bytes_V[targets_BxP].sum()
    return {
        "loss": loss / tokens,
        "accuracy": correct / tokens,
        "bits_per_byte": loss / np.log(2) / max(text_bytes, 1.0),
    }


def token_bytes(words: Tokenizer) -> np.ndarray:
    """Returns bytes_V: the UTF-8 bytes a token stands for, 0 for special ones."""
    return np.array([len(text.encode()) for text, _ in tokenizer.spellings(words)])


@functools.partial(jax.jit, static_argnums=0)
def _scores(config: Config, params, tokens_BxL, ids_B):
    def corrupt(row_id, tokens_L):
        return mask_tokens(
            jax.random.fold_in(jax.random.key(KEY), row_id),
            tokens_L[None],
            mask_rate=config.validation.mask_rate,
            mask_id=tokenizer.MASK,
            vocab_size=config.model.vocab_size,
            mask_share=1.0,
            random_share=0.0,
            never_ids=(tokenizer.CLS, tokenizer.SEP),
        )

    masked = jax.tree.map(lambda x: x[:, 0], jax.vmap(corrupt)(ids_B, tokens_BxL))
    attention_mask = None
    if config.objective.separate_documents:
        attention_mask = document_mask(tokens_BxL)
    logits_BxPxV = MaskedLM(config.model).apply(
        {"params": params}, masked.tokens_BxL, masked.positions_BxP, attention_mask
    )
    loss_BxP = cross_entropies(logits_BxPxV, masked.targets_BxP)
    correct_BxP = jnp.argmax(logits_BxPxV, axis=-1) == masked.targets_BxP
    return loss_BxP, correct_BxP, masked.targets_BxP, masked.weights_BxP

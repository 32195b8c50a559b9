"""The masked-LM loss on held-out text, comparable between runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from cramjax.config import Config
from cramjax.data.corpus import Corpus
from cramjax.data.tokenizer import spellings
from cramjax.model.custom_vjp import cross_entropies
from cramjax.model.encoder import MaskedLM
from cramjax.model.rows import document_mask
from cramjax.tokens import CLS, SEP
from cramjax.training.masking import mask_tokens

KEY = 15  # of the masks: the same for every run, whatever its seed


def score(
    config: Config, named_params: dict[str, Any], corpus: Corpus
) -> dict[str, Any]:
    """Scores a run's `train_step.named_params` on the held-out part.

    Returns:
      The scores of "pretrained", see `held_out`, and "averages": {name: loss}.
    """
    averages = {
        name: held_out(config, params, corpus)["loss"]
        for name, params in named_params.items()
        if name != "pretrained"
    }
    return held_out(config, named_params["pretrained"], corpus) | {"averages": averages}


def held_out(config: Config, params: Any, corpus: Corpus) -> dict[str, float]:
    """Scores parameters on the held-out part.

    All selected positions become <mask>, whatever the mixture in training, so that no
    answer is visible. <cls> and <sep> are never selected: with
    `objective.separate_documents` the attention mask reveals where they are, and runs
    with and without it must be comparable. A block's mask depends only on its index in
    the held-out part, so runs that differ in micro-batch, training mask rate, data
    order or seed are scored on the same positions.

    Args:
      config: `model` and `validation` are used, and `micro_batch` as the batch size.
      params: of `encoder.MaskedLM`.
      corpus: up to `validation.max_blocks` held-out blocks are scored, evenly spaced so
        that all sources are represented.

    Returns:
      "loss", in nats per masked token; "accuracy", the fraction of masked tokens that
      the model finds likeliest; "bits_per_byte", the bits per UTF-8 byte of the masked
      tokens' text, which is also comparable between tokenizers.
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


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Returns bytes_V: the UTF-8 bytes of each token's text, 0 for special tokens."""
    return np.array([len(text.encode()) for text, _ in spellings(tokenizer)])


@functools.partial(jax.jit, static_argnums=0)
def _scores(config: Config, params, tokens_BxL, ids_B):
    def corrupt(row_id, tokens_L):
        return mask_tokens(
            jax.random.fold_in(jax.random.key(KEY), row_id),
            tokens_L[None],
            mask_rate=config.validation.mask_rate,
            vocab_size=config.model.vocab_size,
            mask_share=1.0,
            random_share=0.0,
            unpredictable_ids=(CLS, SEP),
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

"""Fine-tuning one task: all trials in one program, from one kind of start.

Axes: T trials, B batch, L position, C classes or the 1 of a regression, N rows; see
`model`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cramjax import losses, schedules
from cramjax.data import tokenizer
from cramjax.errors import UserError
from cramjax.glue.data import Encoded
from cramjax.model import Classifier
from cramjax.optimizer import decay_mask
from cramjax.schema import GlueConfig, ModelConfig

LENGTH_STEP = 32  # batches are padded to a multiple of it: few shapes, few compilations
EVAL_BATCH = 128


@dataclasses.dataclass(frozen=True)
class _Static:
    """What the compiled programs depend on; hashable."""

    model: ModelConfig
    glue: GlueConfig
    outputs: int
    warmup: float  # share of the steps

    def classifier(self, dropout: float) -> Classifier:
        return Classifier(
            self.model,
            dropout=dropout,
            classes=self.outputs,
            head_width=self.glue.head_width,
        )

    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b1=self.glue.b1, b2=self.glue.b2, eps=self.glue.eps),
            optax.add_decayed_weights(self.glue.weight_decay, mask=decay_mask),
        )


def finetune(
    model: ModelConfig,
    glue: GlueConfig,
    train: Encoded,
    scored: Sequence[Encoded],
    outputs: int,
    *,
    pretrained: Any | None,
    learning_rate: float,
    seed: int,
) -> list[np.ndarray]:
    """Fine-tunes `glue.trials` classifiers; returns their outputs_TxNxC on other rows.

    The protocol of arXiv 2212.14034, section 5: AdamW, linear warm-up and cosine to 0
    over the task's own steps, every epoch reshuffled, the last partial batch dropped,
    the last epoch's weights scored. Trials differ in the head's init, dropout and
    order; without `pretrained` also in the encoder's init.

    Args:
      model: the encoder.
      glue: the protocol's numbers.
      train: training rows, at least one batch of them.
      scored: sets of rows to predict.
      outputs: number of classes; 1 = a regression, with the mean squared error.
      pretrained: parameters of `model.MaskedLM`, or None for random ones.
      learning_rate: at the end of the warm-up.
      seed: of all trials together.

    Raises:
      UserError: fewer training rows than one batch.
    """
    if len(train) < glue.batch_size:
        raise UserError(
            f"config.glue.batch_size is {glue.batch_size}: the task has only "
            f"{len(train)} training rows"
        )
    steps = glue.epochs * (len(train) // glue.batch_size)
    warmup = glue.warmup_steps / steps if glue.warmup_steps else glue.warmup_share
    static = _Static(model, glue, outputs, warmup)
    keys_T = jax.random.split(jax.random.key(seed), glue.trials)
    params_T, opt_T = _init(static, keys_T, pretrained)
    for step, rows_TxB in enumerate(_batches(len(train), glue, seed)):
        tokens_TxBxL = _trim(train.tokens_NxL[rows_TxB], glue.max_length)
        params_T, opt_T = _train_step(
            static,
            params_T,
            opt_T,
            keys_T,
            tokens_TxBxL,
            train.labels_N[rows_TxB],
            np.int32(step),
            np.float32(step / steps),
            np.float32(learning_rate),
        )
    return [_predict_all(static, params_T, rows) for rows in scored]


@functools.partial(jax.jit, static_argnums=0)
def _init(static: _Static, keys_T: jax.Array, pretrained: Any | None) -> Any:
    """Returns params_T and the optimizer's state; the head is random in any case."""
    tokens_1xL = jnp.zeros((1, static.glue.max_length), jnp.int32)

    def one_trial(key):
        # With a mask, so that cuDNN's attention, which needs a GPU, is not asked for.
        params = static.classifier(0.0).init(key, tokens_1xL, tokens_1xL)["params"]
        encoder = {k: v for k, v in (pretrained or {}).items() if k in params}
        params |= encoder
        return params, static.optimizer().init(params)

    return jax.vmap(one_trial)(keys_T)


def _batches(rows: int, glue: GlueConfig, seed: int) -> Iterator[np.ndarray]:
    """Yields rows_TxB; the order depends on (seed, trial, epoch) alone."""
    usable = rows - rows % glue.batch_size
    for epoch in range(glue.epochs):
        order_TxN = np.stack(
            [
                np.random.default_rng([seed, trial, epoch]).permutation(rows)
                for trial in range(glue.trials)
            ]
        )
        for start in range(0, usable, glue.batch_size):
            yield order_TxN[:, start : start + glue.batch_size]


def _trim(tokens: np.ndarray, max_length: int) -> np.ndarray:
    """Cuts or pads the last axis to the longest row, rounded up to LENGTH_STEP.

    Not beyond `max_length`: there may be no more learned positions than that.
    """
    longest = int((tokens != tokenizer.PAD).sum(axis=-1).max())
    length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, max_length)
    missing = max(length - tokens.shape[-1], 0)
    widths = [(0, 0)] * (tokens.ndim - 1) + [(0, missing)]
    return np.pad(tokens, widths, constant_values=tokenizer.PAD)[..., :length]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _train_step(
    static, params_T, opt_T, keys_T, tokens_TxBxL, labels_TxB, step, progress, peak
):
    classifier = static.classifier(static.glue.dropout)
    loss = losses.squared_error if static.outputs == 1 else losses.cross_entropy
    rate = peak * schedules.warmup_cosine(progress, static.warmup)

    def one_trial(params, opt, key, tokens_BxL, labels_B):
        rngs = {"dropout": jax.random.fold_in(key, step)}
        mask_BxL = tokens_BxL != tokenizer.PAD

        def loss_of(params):
            logits_BxC = classifier.apply(
                {"params": params}, tokens_BxL, mask_BxL, rngs=rngs
            )
            return loss(logits_BxC, labels_B)

        updates, opt = static.optimizer().update(jax.grad(loss_of)(params), opt, params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return optax.apply_updates(params, updates), opt

    return jax.vmap(one_trial)(params_T, opt_T, keys_T, tokens_TxBxL, labels_TxB)


def _predict_all(static: _Static, params_T: Any, rows: Encoded) -> np.ndarray:
    outputs = []
    for start in range(0, len(rows), EVAL_BATCH):
        ids_B = np.minimum(np.arange(start, start + EVAL_BATCH), len(rows) - 1)
        tokens_BxL = _trim(rows.tokens_NxL[ids_B], static.glue.max_length)
        outputs.append(np.asarray(_predict(static, params_T, tokens_BxL)))
    return np.concatenate(outputs, axis=1)[:, : len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _predict(static: _Static, params_T: Any, tokens_BxL: jax.Array) -> jax.Array:
    mask_BxL = tokens_BxL != tokenizer.PAD
    return jax.vmap(
        lambda params: static.classifier(0.0).apply(
            {"params": params}, tokens_BxL, mask_BxL
        )
    )(params_T)

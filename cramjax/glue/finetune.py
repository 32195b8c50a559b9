"""Fine-tuning one task: several trials in one program, from one kind of start.

Axes: T trials, B batch, L position, C classes or the 1 of a regression, N rows; see
`model.encoder`.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cramjax.data import tokenizer
from cramjax.errors import UserError, is_out_of_memory
from cramjax.glue import batches
from cramjax.glue.data import Encoded
from cramjax.model.encoder import Classifier
from cramjax.schema import GlueConfig, ModelConfig
from cramjax.training import losses, schedules
from cramjax.training.optimizer import decay_mask

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
      pretrained: parameters of `encoder.MaskedLM`, or None for random ones.
      learning_rate: at the end of the warm-up.
      seed: of all trials together.

    Raises:
      UserError: fewer training rows than one batch, or too little memory.
    """
    if len(train) < glue.batch_size:
        raise UserError(
            f"config.glue.batch_size is {glue.batch_size}: the task has only "
            f"{len(train)} training rows"
        )
    steps = glue.epochs * (len(train) // glue.batch_size)
    warmup = glue.warmup_steps / steps if glue.warmup_steps else glue.warmup_share
    static = _Static(model, glue, outputs, warmup)

    def outputs_of(trials: range) -> list[np.ndarray]:
        """Of a group of trials, whose weights are gone before the next one's come."""
        params_T = _train(static, train, pretrained, trials, learning_rate, seed)
        return [_predict_all(static, params_T, rows) for rows in scored]

    try:
        at_once = trials_at_once(static, train)
    except jax.errors.JaxRuntimeError as error:
        raise _explained(error, glue) from error
    found: list[list[np.ndarray]] = []
    first = 0
    while first < glue.trials:
        trials = range(first, min(first + at_once, glue.trials))
        try:
            found.append(outputs_of(trials))
            first = trials.stop
        except jax.errors.JaxRuntimeError as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise _explained(error, glue) from error
            at_once = -(-at_once // 2)
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _explained(error: Exception, glue: GlueConfig) -> Exception:
    """Returns the error, or one for users if it is about memory."""
    if not is_out_of_memory(error):
        return error
    return UserError(
        f"config.glue.batch_size is {glue.batch_size}: fine-tuning one trial is too "
        f"much for the memory of {jax.devices()[0].device_kind}; pass a smaller one, "
        "or a smaller --config.glue.max_length"
    )


def trials_at_once(static: _Static, train: Encoded) -> int:
    """Returns how many trials one program should train.

    `glue.trials_at_once`, or the faster of all and one, as measured; fewer if their
    memory is not enough. Together they fill a large device, which a batch of 16 rows
    does not.
    """
    glue = static.glue
    if glue.trials_at_once or glue.trials == 1:
        return min(glue.trials_at_once or 1, glue.trials)
    longest = batches.padded_length(train.tokens_NxL, glue.max_length)
    # One measurement serves all tasks of these shapes: only the last layer differs.
    return _fastest(dataclasses.replace(static, outputs=2, warmup=0.1), longest)


@functools.cache
def _fastest(static: _Static, length: int) -> int:
    seconds: dict[int, float] = {1: _seconds_per_step(static, 1, length)}
    count = static.glue.trials
    while count > 1:
        try:
            seconds[count] = _seconds_per_step(static, count, length) / count
            break
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            count = -(-count // 2)
    return min(seconds, key=seconds.__getitem__)


def _seconds_per_step(static: _Static, count: int, length: int) -> float:
    """Measures a training step of so many trials, on made-up rows."""
    batch = static.glue.batch_size
    tokens_NxL = jnp.full((batch, length), tokenizer.SEP, jnp.uint16)
    labels_N = jnp.zeros(batch, jnp.int32)
    keys_T = jax.random.split(jax.random.key(0), count)
    params_T, opt_T = _init(static, keys_T, None)
    rows_SxTxB = np.zeros((batches.CHUNK, count, batch), np.int32)
    best = float("inf")
    for steps in (1, 4, 4):  # the first one compiles
        jax.block_until_ready(params_T)
        start = time.monotonic()
        params_T, opt_T = _train_chunk(
            *(static, length, params_T, opt_T, keys_T, tokens_NxL, labels_N),
            *(rows_SxTxB, np.int32(steps), np.int32(0), np.float32(8), np.float32(0)),
        )
        jax.block_until_ready(params_T)
        if steps > 1:
            best = min(best, (time.monotonic() - start) / steps)
    return best


def _train(
    static: _Static,
    train: Encoded,
    pretrained: Any | None,
    trials: range,
    learning_rate: float,
    seed: int,
) -> Any:
    """Returns params_T of some of the trials; rows and tokens stay on the device."""
    glue = static.glue
    keys_T = jax.random.split(jax.random.key(seed), glue.trials)[np.array(trials)]
    params_T, opt_T = _init(static, keys_T, pretrained)
    longest = batches.padded_length(train.tokens_NxL, glue.max_length)
    tokens_NxL = jnp.asarray(batches.resized(train.tokens_NxL, longest))
    labels_N = jnp.asarray(train.labels_N)
    steps = glue.epochs * (len(train) // glue.batch_size)
    step = 0
    for length, rows_SxTxB in batches.chunks(train, glue, trials, seed):
        count = len(rows_SxTxB)
        rows_SxTxB = np.pad(rows_SxTxB, [(0, batches.CHUNK - count), (0, 0), (0, 0)])
        params_T, opt_T = _train_chunk(
            *(static, length, params_T, opt_T, keys_T, tokens_NxL, labels_N),
            *(rows_SxTxB, np.int32(count), np.int32(step)),
            *(np.float32(steps), np.float32(learning_rate)),
        )
        jax.block_until_ready(params_T)  # an interruption waits for one chunk only
        step += count
    return params_T


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


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _train_chunk(
    static,
    length,
    params_T,
    opt_T,
    keys_T,
    tokens_NxL,
    labels_N,
    rows_SxTxB,
    count,
    first_step,
    all_steps,
    peak,
):
    """Takes the first `count` steps of a chunk; returns params_T, opt_T."""
    tokens_NxL = tokens_NxL[:, :length]

    def one_step(s, carry):
        rows_TxB, step = rows_SxTxB[s], first_step + s
        progress = step.astype(jnp.float32) / all_steps
        tokens_TxBxL, labels_TxB = tokens_NxL[rows_TxB], labels_N[rows_TxB]
        return jax.vmap(
            lambda *trial: _step(static, *trial, step, progress, peak),
        )(*carry, keys_T, tokens_TxBxL, labels_TxB)

    return jax.lax.fori_loop(0, count, one_step, (params_T, opt_T))


def _step(static, params, opt, key, tokens_BxL, labels_B, step, progress, peak):
    """Takes one step of one trial; returns params, opt."""
    classifier = static.classifier(static.glue.dropout)
    loss = losses.squared_error if static.outputs == 1 else losses.cross_entropy
    rate = peak * schedules.warmup_cosine(progress, static.warmup)

    def loss_of(params):
        logits_BxC = classifier.apply(
            {"params": params},
            tokens_BxL,
            tokens_BxL != tokenizer.PAD,
            rngs={"dropout": jax.random.fold_in(key, step)},
        )
        return loss(logits_BxC, labels_B)

    updates, opt = static.optimizer().update(jax.grad(loss_of)(params), opt, params)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    return optax.apply_updates(params, updates), opt


def _predict_all(static: _Static, params_T: Any, rows: Encoded) -> np.ndarray:
    outputs = []
    for start in range(0, len(rows), EVAL_BATCH):
        ids_B = np.minimum(np.arange(start, start + EVAL_BATCH), len(rows) - 1)
        tokens_BxL = rows.tokens_NxL[ids_B]
        length = batches.padded_length(tokens_BxL, static.glue.max_length)
        tokens_BxL = batches.resized(tokens_BxL, length)
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

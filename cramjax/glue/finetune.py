"""Fine-tuning one task: several trials in one program.

Axes: T trials, B batch, L position, C classes or the 1 of a regression, N rows; see
`model.encoder`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cramjax.config import GlueConfig, ModelConfig
from cramjax.device.compile import seconds_per_call
from cramjax.errors import UserError, is_out_of_memory
from cramjax.glue.data import Encoded, padded_length
from cramjax.glue.job import EVAL_BATCH, Finetuned, Job
from cramjax.model.custom_vjp import cross_entropy
from cramjax.model.encoder import Classifier
from cramjax.tokens import PAD, SEP
from cramjax.training import loss_scale, schedules
from cramjax.training.optimizer import decay_mask

CHUNK = 64  # steps of a compiled loop, at most: small batches are not bound by Python
TIMED = 4  # steps of a chunk that is timed
_FOREVER = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class _Static:
    """The settings that the compiled programs depend on; hashable."""

    model: ModelConfig
    glue: GlueConfig
    outputs: int
    warmup: float  # fraction of the steps

    def classifier(self, dropout: float) -> Classifier:
        return Classifier(
            self.model,
            dropout=dropout,
            classes=self.outputs,
            head_width=self.glue.head_width,
            pooling=self.glue.pooling,
        )

    def optimizer(self) -> optax.GradientTransformation:
        adam = optax.chain(
            optax.scale_by_adam(b1=self.glue.b1, b2=self.glue.b2, eps=self.glue.eps),
            optax.add_decayed_weights(self.glue.weight_decay, mask=decay_mask),
        )
        return optax.apply_if_finite(adam, max_consecutive_errors=_FOREVER)


@flax.struct.dataclass
class _Trial:
    """The state of one trial."""

    params: Any  # float32, the tree of `encoder.Classifier`
    # Of `optax.apply_if_finite`: skips and counts updates that are not finite.
    opt_state: optax.ApplyIfFiniteState
    scale: jax.Array  # of the loss; 1 unless the model computes in float16
    finite_steps: jax.Array  # since the scale last changed, int32
    loss: jax.Array  # sum over the steps of the current chunk


def finetune(
    model: ModelConfig,
    glue: GlueConfig,
    train: Encoded,
    predicted: Sequence[Encoded],
    outputs: int,
    *,
    pretrained: Any | None,
    learning_rate: float,
    seed: int,
    standardize: bool = False,
    on_trained: Callable[[Any], None] = lambda _: None,
    job: Job | None = None,
) -> Finetuned:
    """Fine-tunes `glue.trials` classifiers; returns what they predict.

    The protocol of arXiv 2212.14034, section 5: AdamW, linear warm-up and cosine to 0
    over the task's own steps, every epoch reshuffled, the last partial batch dropped,
    the last epoch's weights kept. Trials differ in the head's init, dropout and
    order; without `pretrained` also in the encoder's init.

    Args:
      model: of the encoder.
      glue: the protocol.
      train: at least one batch of rows.
      predicted: sets of rows to predict after training.
      outputs: number of classes; 1 = a regression, with the mean squared error.
      pretrained: parameters of `encoder.MaskedLM`, or None for random ones.
      learning_rate: at the end of the warm-up.
      seed: of all trials together.
      standardize: train a regression on numbers of mean 0 and deviation 1; predictions
        are in the labels' own scale.
      on_trained: called with params_T of the trials that were trained together, in the
        order of the trials.
      job: shows and logs the progress, and keeps the trials that are finished, so that
        a job that is run again does not repeat them.

    Raises:
      UserError: the device has too little memory for one trial.
    """
    steps = glue.epochs * (len(train) // glue.batch_size)
    warmup = glue.warmup_steps / steps if glue.warmup_steps else glue.warmup_share
    static = _Static(model, glue, outputs, warmup)
    mean, std = 0.0, 1.0
    if standardize:
        mean, std = train.labels_N.mean(), train.labels_N.std() or 1.0
        train = dataclasses.replace(train, labels_N=(train.labels_N - mean) / std)

    def train_together(trials: range) -> Finetuned:
        epochs = _train(static, train, pretrained, trials, learning_rate, seed, job)
        for epoch, (trained_T, loss_T) in enumerate(epochs, 1):
            predict = functools.partial(_predict_all, static, trained_T.params)
            if job:
                job.write_epoch(trials, epoch, loss_T, predict)
        params_T = trained_T.params
        skipped_T = np.asarray(trained_T.opt_state.total_notfinite)
        del trained_T, predict  # the optimizer's state makes room for predictions
        if standardize:
            head = params_T["head"]
            scaled = {"kernel": head["kernel"] * std, "bias": head["bias"] * std + mean}
            params_T = {**params_T, "head": scaled}
        found = [_predict_all(static, params_T, rows) for rows in predicted]
        on_trained(params_T)
        return Finetuned(found, skipped_T, len(trials))

    at_once = min(glue.trials_at_once or 1, glue.trials)
    if not glue.trials_at_once and glue.trials > 1:
        longest = padded_length(train.tokens_NxL, glue.max_length)
        at_once, _ = fastest(model, glue, longest)
    groups, first = [], 0
    while first < glue.trials:
        if job and (group := job.load(first)):
            groups.append(group)
            first += len(group.skipped_T)
            continue
        trials = range(first, min(first + at_once, glue.trials))
        try:
            groups.append(train_together(trials))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if at_once == 1:
                raise UserError(
                    f"config.glue.batch_size is {glue.batch_size}: fine-tuning one "
                    "trial is too much for the memory of "
                    f"{jax.devices()[0].device_kind}; pass a smaller one, or a smaller "
                    "--config.glue.max_length"
                ) from error
            at_once = 1
            continue
        if job and len(trials) < glue.trials:
            job.save(first, groups[-1])
        first = trials.stop
    parts = zip(*(group.outputs for group in groups), strict=True)
    return Finetuned(
        [np.concatenate(outputs) for outputs in parts],
        np.concatenate([group.skipped_T for group in groups]),
        max(group.at_once for group in groups),
    )


@functools.cache
def fastest(model: ModelConfig, glue: GlueConfig, length: int) -> tuple[int, float]:
    """Returns how many trials to train at once, and the seconds of a step for each.

    `glue.trials_at_once`, or the faster of all and one, as measured on made-up rows:
    together they fill a large device, which a batch of 16 rows does not. One
    measurement serves all tasks with rows of this length, because only the last layer
    differs.
    """
    static = _Static(model, glue, outputs=2, warmup=0.1)
    counts = {min(glue.trials_at_once, glue.trials)}
    if not glue.trials_at_once:
        counts = {1, glue.trials}
    seconds = {n: _seconds_per_step(static, n, length) / n for n in sorted(counts)}
    return min(seconds.items(), key=lambda item: item[1])


def _seconds_per_step(static: _Static, count: int, length: int) -> float:
    """Measures a training step of this many trials; infinity if memory is short."""
    batch = static.glue.batch_size
    tokens_NxL = jnp.full((batch, length), SEP, jnp.uint16)
    labels_N = jnp.zeros(batch, jnp.int32)
    keys_T = jax.random.split(jax.random.key(0), count)
    rows_SxTxB = np.zeros((CHUNK, count, batch), np.int32)

    def take_steps(trials_T: _Trial) -> _Trial:
        return _train_chunk(
            *(static, length, trials_T, keys_T, tokens_NxL, labels_N, rows_SxTxB),
            *(np.int32(TIMED), np.int32(0), np.float32(8), np.float32(0)),
        )

    try:
        return seconds_per_call(take_steps, _init(static, keys_T, None)) / TIMED
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            return math.inf
        raise


def _train(
    static: _Static,
    train: Encoded,
    pretrained: Any | None,
    trials: range,
    learning_rate: float,
    seed: int,
    job: Job | None,
) -> Iterator[tuple[_Trial, np.ndarray]]:
    """Yields the given trials and their mean loss_T after every epoch.

    The rows' tokens stay on the device. The next epoch overwrites the trials that were
    yielded.
    """
    glue = static.glue
    keys_T = jax.random.split(jax.random.key(seed), glue.trials)[np.array(trials)]
    trials_T = _init(static, keys_T, pretrained)
    longest = padded_length(train.tokens_NxL, glue.max_length)
    tokens_NxL = jnp.asarray(train.tokens_NxL[:, :longest])
    labels_N = jnp.asarray(train.labels_N)
    steps_per_epoch = len(train) // glue.batch_size
    steps, step = glue.epochs * steps_per_epoch, 0
    for epoch in range(glue.epochs):
        loss_T = np.zeros(len(trials))
        for length, rows_SxTxB in chunks(train, glue, trials, seed, epoch):
            count = len(rows_SxTxB)
            rows_SxTxB = np.pad(rows_SxTxB, [(0, CHUNK - count), (0, 0), (0, 0)])
            trials_T = _train_chunk(
                *(static, length, trials_T, keys_T, tokens_NxL, labels_N),
                *(rows_SxTxB, np.int32(count), np.int32(step)),
                *(np.float32(steps), np.float32(learning_rate)),
            )
            # Waiting here for every chunk lets an interruption wait for one only.
            chunk_loss_T = np.asarray(trials_T.loss)
            loss_T += chunk_loss_T
            step += count
            if job:
                done = (trials.start + len(trials) * step / steps) / glue.trials
                job.show(done, float(chunk_loss_T.mean()) / count)
        yield trials_T, loss_T / steps_per_epoch


@functools.partial(jax.jit, static_argnums=0)
def _init(static: _Static, keys_T: jax.Array, pretrained: Any | None) -> _Trial:
    """Returns untrained trials; the head is always random."""
    tokens_1xL = jnp.zeros((1, static.glue.max_length), jnp.int32)

    def one_trial(key):
        # A mask keeps cuDNN's attention, which needs a GPU, from being chosen.
        params = static.classifier(0.0).init(key, tokens_1xL, tokens_1xL)["params"]
        params |= {k: v for k, v in (pretrained or {}).items() if k in params}
        return _Trial(
            params=params,
            opt_state=static.optimizer().init(params),
            scale=loss_scale.initial(static.model.dtype),
            finite_steps=jnp.int32(0),
            loss=jnp.float32(0),
        )

    return jax.vmap(one_trial)(keys_T)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _train_chunk(
    static,
    length,
    trials_T,
    keys_T,
    tokens_NxL,
    labels_N,
    rows_SxTxB,
    count,
    first_step,
    all_steps,
    peak,
):
    """Takes the first `count` steps of a chunk; returns the trials after them."""
    tokens_NxL = tokens_NxL[:, :length]

    def one_step(s, trials_T):
        rows_TxB, step = rows_SxTxB[s], first_step + s
        progress = step.astype(jnp.float32) / all_steps
        tokens_TxBxL, labels_TxB = tokens_NxL[rows_TxB], labels_N[rows_TxB]
        return jax.vmap(
            lambda *trial: _step(static, *trial, step, progress, peak),
        )(trials_T, keys_T, tokens_TxBxL, labels_TxB)

    trials_T = trials_T.replace(loss=jnp.zeros_like(trials_T.loss))
    return jax.lax.fori_loop(0, count, one_step, trials_T)


def _step(static, trial, key, tokens_BxL, labels_B, step, progress, peak):
    """Takes one step of one trial, or leaves its update out if it is not finite."""
    rate = peak * schedules.warmup_cosine(progress, static.warmup)
    loss, grads = _gradients(
        static,
        trial.params,
        trial.scale,
        jax.random.fold_in(key, step),
        tokens_BxL,
        labels_B,
    )
    updates, opt_state = static.optimizer().update(grads, trial.opt_state, trial.params)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    scale, finite_steps = loss_scale.following(
        static.model.dtype, trial.scale, trial.finite_steps, opt_state.last_finite
    )
    return _Trial(
        params=optax.apply_updates(trial.params, updates),
        opt_state=opt_state,
        scale=scale,
        finite_steps=finite_steps,
        loss=trial.loss + loss,
    )


def _squared_error(outputs_Bx1: jax.Array, targets_B: jax.Array) -> jax.Array:
    """Returns the mean squared error of a regression."""
    return jnp.mean(jnp.square(outputs_Bx1.astype(jnp.float32)[:, 0] - targets_B))


def _gradients(static, params, scale, dropout_key, tokens_BxL, labels_B):
    """Returns the loss and its gradients, computed at `scale` times the loss."""
    classifier = static.classifier(static.glue.dropout)
    loss_function = _squared_error if static.outputs == 1 else cross_entropy

    def loss_of(params):
        logits_BxC = classifier.apply(
            {"params": params},
            tokens_BxL,
            tokens_BxL != PAD,
            rngs={"dropout": dropout_key},
        )
        loss = loss_function(logits_BxC, labels_B)
        return loss * scale if scales_loss else loss, loss

    scales_loss = loss_scale.is_used(static.model.dtype)
    grads, loss = jax.grad(loss_of, has_aux=True)(params)
    if scales_loss:
        grads = jax.tree.map(lambda g: g / scale, grads)
    return loss, grads


def _predict_all(static: _Static, params_T: Any, rows: Encoded) -> np.ndarray:
    outputs = []
    for start in range(0, len(rows), EVAL_BATCH):
        ids_B = np.minimum(np.arange(start, start + EVAL_BATCH), len(rows) - 1)
        tokens_BxL = rows.tokens_NxL[ids_B]
        length = padded_length(tokens_BxL, static.glue.max_length)
        outputs_TxBxC = _predict(static, params_T, tokens_BxL[:, :length])
        outputs.append(np.asarray(outputs_TxBxC))
    return np.concatenate(outputs, axis=1)[:, : len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _predict(static: _Static, params_T: Any, tokens_BxL: jax.Array) -> jax.Array:
    mask_BxL = tokens_BxL != PAD
    return jax.vmap(
        lambda params: static.classifier(0.0).apply(
            {"params": params}, tokens_BxL, mask_BxL
        )
    )(params_T)


def chunks(
    train: Encoded, glue: GlueConfig, trials: range, seed: int, epoch: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (length, rows_SxTxB): consecutive steps of the same length, at most CHUNK.

    The length of a step is that of the longest row in the batches of all trials,
    rounded up to LENGTH_STEP, even if only some trials are wanted: dropout depends on
    the shape. Rows are not grouped by length, which would be another shuffle.
    """

    def length_of(rows_TxB: np.ndarray) -> int:
        return padded_length(train.tokens_NxL[rows_TxB], glue.max_length)

    steps = batches(len(train), glue, seed, epoch)
    for length, same_length in itertools.groupby(steps, length_of):
        wanted = (rows_TxB[trials.start : trials.stop] for rows_TxB in same_length)
        while chunk := list(itertools.islice(wanted, CHUNK)):
            yield length, np.stack(chunk)


def batches(rows: int, glue: GlueConfig, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yields int32 rows_TxB of full batches, in an order of each trial's own."""
    orders = [
        np.random.default_rng([seed, trial, epoch]).permutation(rows)
        for trial in range(glue.trials)
    ]
    order_TxN = np.stack(orders).astype(np.int32)
    for start in range(0, rows - rows % glue.batch_size, glue.batch_size):
        yield order_TxN[:, start : start + glue.batch_size]

"""The compiled training step and its batches, and whether its numbers are right."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from cramjax.benchmark import timing
from cramjax.benchmark.timing import Deadline
from cramjax.data import tokenizer
from cramjax.data.kinds import SPECIAL_TOKENS
from cramjax.data.packing import token_dtype
from cramjax.device.compilation import lowered, planned_bytes
from cramjax.device.throughput import peak_memory_bytes
from cramjax.errors import UserError
from cramjax.model.encoder import MaskedLM
from cramjax.schema import Config, ModelConfig
from cramjax.training import losses, train_step
from cramjax.training.masking import Masked, mask_tokens

LEARNING_STEPS = 50
HALF_TOLERANCE = 1e-2  # nats between the 16-bit and the float32 loss
CHECKED_ROWS = 32  # of the batches that are compared in two precisions
DISTINCT_BATCHES = 16


def variant(config: Config, attention: str, micro_batch: int) -> Config:
    """Returns the config of a variant, with a ramp that `progress_of` can steer.

    Raises:
      UserError: the attention does not go with the config.
    """
    sequences = max(config.batch.sequences, micro_batch)
    return dataclasses.replace(
        config,
        micro_batch=micro_batch,
        model=dataclasses.replace(config.model, attention=attention),
        batch=dataclasses.replace(config.batch, sequences=sequences, ramp_share=0.5),
    )


def progress_of(config: Config, last: bool) -> np.float32:
    """Returns a share of the budget at which every micro-batch is an update.

    Or, with `last`, one at which the batch has its final size. It is not 0, where a
    warm-up would keep the model from learning.
    """
    first = 0.25 * config.micro_batch / config.batch.sequences
    return np.float32(0.75 if last else first)


def accumulated(config: Config) -> int:
    """Returns the micro-batches of an update at the end of the ramp."""
    return -(-config.batch.sequences // config.micro_batch)


def random_batches(config: Config, count: int, seed: int = 0) -> list[np.ndarray]:
    """Returns tokens_BxL: frequent and rare ones as in text (Zipf's law), no zeros."""
    model = config.model
    dtype = token_dtype(model.vocab_size)
    special = len(SPECIAL_TOKENS)
    cumulated_V = np.cumsum(1 / np.arange(1, model.vocab_size - special + 1))
    generator = np.random.default_rng(seed)
    shape = (config.micro_batch, model.max_length)
    return [
        (
            np.searchsorted(cumulated_V, generator.random(shape) * cumulated_V[-1])
            + special
        ).astype(dtype)
        for _ in range(count)
    ]


class TrainingStep:
    """The compiled micro-step of a config, and its state on the device.

    Attributes:
      config: see `variant`.
      state: a `train_step.TrainState`.
      compile_s: how long the step took to compile.
    """

    def __init__(self, config: Config):
        """Compiles."""
        self.config = config
        self._peak_before = peak_memory_bytes() or 0
        mesh = train_step.make_mesh()
        self.state = jax.jit(
            functools.partial(train_step.init_state, config),
            out_shardings=train_step.replicated(mesh),
        )()
        step = train_step.make_micro_step(config, mesh)
        shape = (config.micro_batch, config.model.max_length)
        start = time.monotonic()
        self._compiled = lowered(config, step, shape).compile()
        self.compile_s = time.monotonic() - start

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.config.micro_batch * self.config.model.max_length

    def run(self, batches: Sequence[np.ndarray], last: bool = False) -> list[float]:
        """Trains; returns the losses when all work is done."""
        progress, found = progress_of(self.config, last), []
        for tokens_BxL in batches:
            self.state, metrics = self._compiled(self.state, tokens_BxL, progress)
            found.append(metrics["loss"])
        jax.block_until_ready((self.state, found))
        return [float(loss) for loss in found]

    def compiled_flops(self) -> float | None:
        """Returns FLOPs of a micro-step as the compiler counts them."""
        return (self._compiled.cost_analysis() or {}).get("flops")

    def memory(self) -> tuple[int, str]:
        """Returns the bytes a micro-step takes, and whose word that is.

        "device": its peak, which is that of the whole process, so it is this step's
        only if it rose since; or else "compiler": its plan.
        """
        peak = peak_memory_bytes() or 0
        if peak > self._peak_before:
            return peak, "device"
        return planned_bytes(self._compiled), "compiler"


def check(step: TrainingStep, deadline: Deadline) -> dict[str, Any]:
    """Trains on one batch, then compares a 16-bit loss with the float32 one.

    Returns:
      {"steps", "first_loss", "last_loss", "dtype" (the 16-bit one), "loss_in_dtype",
      "loss_in_float32"}; losses in nats.

    Raises:
      UserError: one of the two fails. The speed of wrong numbers is not measured.
    """
    batch = random_batches(step.config, 1)
    found = step.run(batch)
    while len(found) < LEARNING_STEPS and (len(found) < 5 or deadline.left_s > 0):
        found += step.run(batch)
    first, last = found[0], statistics.mean(found[-5:])
    if not last < first:
        raise UserError(
            f"benchmark: {len(found)} steps on one batch took the loss from {first:.3f}"
            f" to {last:.3f}: it does not learn, so its speed is not measured"
        )
    model = step.config.model
    half = "bfloat16" if model.dtype == "float32" else model.dtype
    masked = masked_rows(step.config)
    exact = loss(in_float32(model), step.state.params, masked)
    rough = loss(dataclasses.replace(model, dtype=half), step.state.params, masked)
    if not abs(exact - rough) < HALF_TOLERANCE:
        raise UserError(
            f"benchmark: the loss of one batch is {rough:.4f} in {half} and {exact:.4f}"
            f" in float32, more than {HALF_TOLERANCE} apart: speed is not measured"
        )
    return {
        "steps": len(found),
        "first_loss": first,
        "last_loss": last,
        "dtype": half,
        "loss_in_dtype": rough,
        "loss_in_float32": exact,
    }


def in_float32(model: ModelConfig) -> ModelConfig:
    """Returns the model without anything that needs 16 bits."""
    return dataclasses.replace(model, dtype="float32", attention="xla")


def masked_rows(config: Config) -> Masked:
    """Returns a few masked rows that no step was trained on."""
    [tokens_BxL] = random_batches(config, 1, seed=1)
    return mask_tokens(
        jax.random.key(1),
        tokens_BxL[:CHECKED_ROWS],
        mask_rate=config.objective.max_mask_rate,
        mask_id=tokenizer.MASK,
        vocab_size=config.model.vocab_size,
    )


def loss(model: ModelConfig, params: Any, masked: Masked) -> float:
    """Returns the loss in nats."""
    with jax.default_matmul_precision(_precision(model)):
        return float(_loss(model, params, masked))


def loss_and_norm(
    model: ModelConfig, params: Any, masked: Masked
) -> tuple[float, float]:
    """Returns the loss and the global norm of its gradient."""
    with jax.default_matmul_precision(_precision(model)):
        found, norm = _loss_and_norm(model, params, masked)
        return float(found), float(norm)


@functools.partial(jax.jit, static_argnums=0)
def _loss(model: ModelConfig, params: Any, masked: Masked) -> jax.Array:
    logits_BxPxV = MaskedLM(model).apply(
        {"params": params}, masked.tokens_BxL, masked.positions_BxP
    )
    return losses.cross_entropy(logits_BxPxV, masked.targets_BxP)


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_norm(model: ModelConfig, params: Any, masked: Masked):
    found, grads = jax.value_and_grad(_loss, 1)(model, params, masked)
    return found, optax.tree.norm(grads)


def _precision(model: ModelConfig) -> str | None:
    """A GPU's float32 products keep 10 bits of mantissa unless told otherwise."""
    return "highest" if model.dtype == "float32" else None


def window(step: TrainingStep, other_s: float = 0.0) -> list[np.ndarray]:
    """Warms up; returns the batches of a timed window.

    If something slower runs on the same batches, which takes `other_s` for one, there
    are as many of them as suit that.
    """
    pool = random_batches(step.config, 2)
    step.run(pool)
    own_s = timing.seconds_of(lambda: step.run(pool)) / 2
    steps = timing.steps_per_window(max(own_s, other_s))
    pool = random_batches(step.config, min(steps, DISTINCT_BATCHES))
    return [pool[i % len(pool)] for i in range(steps)]

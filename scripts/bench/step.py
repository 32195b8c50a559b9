"""The compiled training step and its batches, and whether its numbers are right."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

import jax
import numpy as np
import optax

from bench.timing import Deadline, seconds_of
from cramjax.config import Config, ModelConfig
from cramjax.data import tokenizer
from cramjax.device.compile import planned_bytes
from cramjax.device.monitor import peak_memory_bytes
from cramjax.errors import UserError
from cramjax.model import fused
from cramjax.model.encoder import MaskedLM
from cramjax.training import train_step
from cramjax.training.masking import Masked, mask_tokens

LEARNING_STEPS = 50
HALF_TOLERANCE = 1e-2  # nats between the 16-bit and the float32 loss
CHECKED_ROWS = 32  # of the batches that are compared in two precisions
WINDOW_S = 2.0  # what a timed window should take at least
MAX_STEPS = 64  # in a window
DISTINCT_BATCHES = 16  # in a window


def variant(config: Config, attention: str, micro_batch: int) -> Config:
    """Returns the config of a variant, with a ramp that `TrainingStep.run` can steer.

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


class TrainingStep:
    """The compiled micro-step of a config, and its state on the device.

    Attributes:
      config: see `variant`.
      state: a `train_step.TrainState`.
      compile_s: how long the step took to compile.
      tokens: of a micro-batch.
      accumulated: micro-batches of an update at the end of the ramp.
    """

    def __init__(self, config: Config):
        """Compiles."""
        self._peak_before = peak_memory_bytes() or 0
        step = train_step.build(config)
        self.config, self.tokens = config, step.tokens
        self.accumulated = -(-config.batch.sequences // config.micro_batch)
        self.random_batches = step.random_batches
        self.state = step.fresh_state()
        start = time.monotonic()
        self._compiled = step.lowered().compile()
        self.compile_s = time.monotonic() - start

    def run(self, batches: Sequence[np.ndarray], last: bool = False) -> list[float]:
        """Trains; returns the losses when all work is done.

        Args:
          batches: of the config's micro-batch.
          last: whether the batch has its final size; else every micro-batch is an
            update.
        """
        # Not 0, where a warm-up would keep the model from learning.
        first = 0.25 * self.config.micro_batch / self.config.batch.sequences
        progress, found = np.float32(0.75 if last else first), []
        for tokens_BxL in batches:
            self.state, metrics = self._compiled(self.state, tokens_BxL, progress)
            found.append(metrics["loss"])
        jax.block_until_ready((self.state, found))
        return [float(loss) for loss in found]

    def window(self, other_s: float = 0.0) -> list[np.ndarray]:
        """Warms up; returns the batches of a timed window.

        If something slower runs on the same batches, and takes `other_s` for one, their
        number suits that.
        """
        pool = self.random_batches(2)
        self.run(pool)
        step_s = max(seconds_of(lambda: self.run(pool)) / 2, other_s, 1e-9)
        steps = min(max(round(WINDOW_S / step_s), 1), MAX_STEPS)
        pool = self.random_batches(min(steps, DISTINCT_BATCHES))
        return [pool[i % len(pool)] for i in range(steps)]

    def compiled_flops(self) -> float | None:
        """Returns FLOPs of a micro-step as the compiler counts them."""
        return (self._compiled.cost_analysis() or {}).get("flops")

    def memory(self) -> tuple[int, str]:
        """Returns the bytes a micro-step takes, and where that number is from.

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
    batch = step.random_batches(1)
    found = step.run(batch)
    while len(found) < LEARNING_STEPS and (len(found) < 5 or deadline.left_s > 0):
        found += step.run(batch)
    first, last = found[0], mean(found[-5:])
    if not last < first:
        raise UserError(
            f"benchmark: {len(found)} steps on one batch took the loss from {first:.3f}"
            f" to {last:.3f}: it does not learn, so its speed is not measured"
        )
    model, params = step.config.model, step.state.params
    half = "bfloat16" if model.dtype == "float32" else model.dtype
    masked = masked_rows(step.config)
    rough = float(_loss(params, dataclasses.replace(model, dtype=half), masked))
    with jax.default_matmul_precision("highest"):
        exact = float(_loss(params, in_float32(model), masked))
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
    [tokens_BxL] = train_step.build(config).random_batches(1, seed=1)
    return mask_tokens(
        jax.random.key(1),
        tokens_BxL[:CHECKED_ROWS],
        mask_rate=config.objective.max_mask_rate,
        mask_id=tokenizer.MASK,
        vocab_size=config.model.vocab_size,
    )


def float32_loss_and_norm(
    model: ModelConfig, params: Any, masked: Masked
) -> tuple[float, float]:
    """Returns the loss in nats and the global norm of its gradient."""
    # A GPU's float32 products keep 10 bits of mantissa unless they are asked for more.
    with jax.default_matmul_precision("highest"):
        loss, grads = _loss_and_grads(params, in_float32(model), masked)
        return float(loss), float(optax.tree.norm(grads))


@functools.partial(jax.jit, static_argnums=1)
def _loss(params: Any, model: ModelConfig, masked: Masked) -> jax.Array:
    logits_BxPxV = MaskedLM(model).apply(
        {"params": params}, masked.tokens_BxL, masked.positions_BxP
    )
    return fused.cross_entropy(logits_BxPxV, masked.targets_BxP)


_loss_and_grads = jax.jit(jax.value_and_grad(_loss), static_argnums=1)

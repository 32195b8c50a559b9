"""The compiled training step: whether its numbers are right, and how fast it is."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

import jax
import numpy as np

from bench.timing import Deadline, alternate, seconds_of
from cramjax.config import Config, ModelConfig
from cramjax.device import monitor
from cramjax.device.compile import planned_bytes
from cramjax.device.monitor import peak_memory_bytes
from cramjax.errors import UserError
from cramjax.model.custom_vjp import cross_entropy
from cramjax.model.encoder import MaskedLM, on_any_device
from cramjax.model.flops import train_flops_per_token
from cramjax.training import train_step
from cramjax.training.masking import MaskedBatch, mask_tokens

LEARNING_STEPS = 50
HALF_TOLERANCE = 1e-2  # nats between the 16-bit and the float32 loss
CHECKED_ROWS = 32  # of the batches that are compared in two precisions
WINDOWS = 3
WINDOW_S = 2.0  # minimum duration of a timed window
MAX_STEPS = 64  # in a window
DISTINCT_BATCHES = 16  # in a window
PROGRESS = np.float32(0.25)  # not 0, where a warm-up would keep the model from learning


def variant(config: Config, attention: str, micro_batch: int) -> Config:
    """Returns the config of a variant, in which every micro-batch is an update.

    Raises:
      UserError: the model cannot have this attention.
    """
    return dataclasses.replace(
        config,
        micro_batch=micro_batch,
        model=dataclasses.replace(config.model, attention=attention),
        # A ramp keeps the number of micro-batches per update traced, as in training.
        batch=dataclasses.replace(config.batch, sequences=micro_batch, ramp_share=0.5),
    )


class TrainingStep:
    """The compiled micro-step of a `variant`, and its state on the device.

    Attributes:
      config: of the variant.
      state: a `train_step.TrainState`.
      compile_s: the duration of the compilation.
      tokens: of a micro-batch.
    """

    def __init__(self, config: Config):
        """Compiles."""
        self._peak_before = peak_memory_bytes() or 0
        step = train_step.build(config)
        self.config, self.tokens = config, math.prod(step.block_shape)
        self.random_batches = step.random_batches
        self.state = step.fresh_state()
        start = time.monotonic()
        self._compiled = step.lowered().compile()
        self.compile_s = time.monotonic() - start

    def run(self, batches: Sequence[np.ndarray]) -> list[float]:
        """Trains on tokens_BxL batches; returns the losses when the work is done."""
        losses = []
        for tokens_BxL in batches:
            self.state, metrics = self._compiled(self.state, tokens_BxL, PROGRESS)
            losses.append(metrics["loss"])
        jax.block_until_ready((self.state, losses))
        return [float(loss) for loss in losses]

    def window(self, other_s: float = 0.0) -> list[np.ndarray]:
        """Warms up; returns the batches of a timed window.

        If something slower will run on the same batches, `other_s` is its time per
        batch, which the length of the window then depends on.
        """
        pool = self.random_batches(2)
        self.run(pool)
        step_s = max(seconds_of(lambda: self.run(pool)) / 2, other_s, 1e-9)
        steps = min(max(round(WINDOW_S / step_s), 1), MAX_STEPS)
        pool = self.random_batches(min(steps, DISTINCT_BATCHES))
        return [pool[i % len(pool)] for i in range(steps)]

    def measure(self, deadline: Deadline) -> dict[str, Any]:
        """Returns speed, memory and energy.

        Returns:
          {"attention", "micro_batch", "tokens_per_s" (median), "windows_tokens_per_s",
          "mfu" (None unless the card is listed), "compile_s", "memory_bytes",
          "memory_from" ("device": its peak, if that rose since this step was compiled;
          else "compiler": its plan), "joules_per_million_tokens" (of the whole card;
          None if unknown), "flops_over_formula" (as the compiler counts them), "gpu" (a
          `GpuStats` right after the last window, or None)}
        """
        config, batches = self.config, self.window()
        before = monitor.read_gpu()
        seconds = alternate({"": lambda: self.run(batches)}, WINDOWS, deadline)[""]
        after = monitor.read_gpu()
        tokens = len(batches) * self.tokens
        speeds = [tokens / s for s in seconds]
        flops = train_flops_per_token(config.model, config.objective.max_mask_rate)
        counted = (self._compiled.cost_analysis() or {}).get("flops")
        joules = [stats and stats.energy_j for stats in (before, after)]
        peak = peak_memory_bytes() or 0
        on_device = peak > self._peak_before
        return {
            "attention": config.model.attention,
            "micro_batch": config.micro_batch,
            "tokens_per_s": median(speeds),
            "windows_tokens_per_s": speeds,
            "mfu": monitor.mfu(median(speeds) * flops, 1.0),
            "compile_s": self.compile_s,
            "memory_bytes": peak if on_device else planned_bytes(self._compiled),
            "memory_from": "device" if on_device else "compiler",
            "joules_per_million_tokens": None
            if None in joules
            else (joules[1] - joules[0]) / (tokens * len(seconds)) * 1e6,
            "flops_over_formula": counted and counted / (flops * self.tokens),
            "gpu": after and dataclasses.asdict(after),
        }


def check(step: TrainingStep, deadline: Deadline) -> dict[str, Any]:
    """Trains on one batch, then compares a 16-bit loss with the float32 loss.

    Returns:
      {"steps", "first_loss", "last_loss", "dtype" (the 16-bit one), "loss_in_dtype",
      "loss_in_float32"}; losses in nats.

    Raises:
      UserError: the loss did not fall, or the two differ.
    """
    batch = step.random_batches(1)
    losses = step.run(batch)
    while len(losses) < LEARNING_STEPS and (len(losses) < 5 or deadline.left_s > 0):
        losses += step.run(batch)
    first, last = losses[0], mean(losses[-5:])
    if not last < first:
        raise UserError(
            f"benchmark: {len(losses)} steps on one batch took the loss from "
            f"{first:.3f} to {last:.3f}: it does not learn, so its speed is not "
            "measured"
        )
    model, params = step.config.model, step.state.params
    half = "bfloat16" if model.dtype == "float32" else model.dtype
    masked = masked_rows(step.config)
    rough = float(loss_of(params, dataclasses.replace(model, dtype=half), masked))
    with jax.default_matmul_precision("highest"):
        exact = float(loss_of(params, on_any_device(model, dtype="float32"), masked))
    if not abs(exact - rough) < HALF_TOLERANCE:
        raise UserError(
            f"benchmark: the loss of one batch is {rough:.4f} in {half} and {exact:.4f}"
            f" in float32, more than {HALF_TOLERANCE} apart: speed is not measured"
        )
    return {
        "steps": len(losses),
        "first_loss": first,
        "last_loss": last,
        "dtype": half,
        "loss_in_dtype": rough,
        "loss_in_float32": exact,
    }


def masked_rows(config: Config) -> MaskedBatch:
    """Returns up to CHECKED_ROWS masked rows that no step was trained on."""
    [tokens_BxL] = train_step.build(config).random_batches(1, seed=1)
    return mask_tokens(
        jax.random.key(1),
        tokens_BxL[:CHECKED_ROWS],
        mask_rate=config.objective.max_mask_rate,
        vocab_size=config.model.vocab_size,
    )


@functools.partial(jax.jit, static_argnums=1)
def loss_of(params: Any, model: ModelConfig, masked: MaskedBatch) -> jax.Array:
    """Returns the loss of masked rows in nats."""
    logits_BxPxV = MaskedLM(model).apply(
        {"params": params}, masked.tokens_BxL, masked.positions_BxP
    )
    return cross_entropy(logits_BxPxV, masked.targets_BxP)

"""How fast the training step is, for each attention and micro-batch."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax

from cramjax.benchmark import environment, timing, training
from cramjax.benchmark.timing import Deadline
from cramjax.benchmark.training import TrainingStep
from cramjax.device import throughput, tuning
from cramjax.device.gpu_stats import GpuStats
from cramjax.errors import UserError, is_out_of_memory, one_line
from cramjax.flops import train_flops_per_token
from cramjax.schema import Config

WINDOWS = 3


class Variants:
    """The variants that were measured.

    Attributes:
      rows: what `time_step` returned, in the order of measuring.
      correctness: {attention: what `training.check` returned}.
      longest_s: that a variant took, compilation and checks included.
    """

    def __init__(self, config: Config, deadline: Deadline, say: Callable[[str], None]):
        """Measures nothing yet."""
        self._config, self._deadline, self._say = config, deadline, say
        own = config.model.attention
        others = [name for name in tuning.attentions(config) if name != own]
        self._attentions = [own, *others]
        self._steps: dict[str, TrainingStep] = {}
        self.rows: list[dict[str, Any]] = []
        self.correctness: dict[str, dict[str, Any]] = {}
        self.longest_s = 0.0

    @property
    def best(self) -> dict[str, Any]:
        """The fastest one's row."""
        return max(self.rows, key=lambda row: row["tokens_per_s"])

    def fastest_step(self) -> TrainingStep:
        """Returns the step of the fastest attention at the config's micro-batch."""
        return self._steps[self.best["attention"]]

    def measure(self, micro_batch: int) -> None:
        """Measures all attentions at a micro-batch; what cannot be is left out.

        The config's micro-batch comes first: there every attention is checked and its
        step kept until `forget`, one that cannot be measured is not tried again, and
        the config's own is measured whatever the time is.

        Raises:
          UserError: the config's own variant fails a check, or does not fit in memory.
        """
        growth = max(micro_batch / self._config.micro_batch, 1)
        for attention in list(self._attentions):
            what = f"{attention}, {micro_batch} x {self._config.model.max_length}"
            first = not self.rows
            if not first and not self._deadline.allows(what, growth * self.longest_s):
                continue
            self._say(f"{what} ({self._deadline.used_s:.0f}s so far)")
            try:
                self._measure(attention, micro_batch)
            except (UserError, RuntimeError, ValueError) as error:
                if first:
                    self._explain(error)
                    raise
                self._deadline.skip(what, one_line(error))
                if micro_batch == self._config.micro_batch:
                    self._attentions.remove(attention)

    def _explain(self, error: Exception) -> None:
        if is_out_of_memory(error):
            raise UserError(
                f"config.micro_batch is {self._config.micro_batch}: too much for the "
                f"memory of {jax.devices()[0].device_kind}; pass a smaller one"
            ) from error

    def _measure(self, attention: str, micro_batch: int) -> None:
        began_s = self._deadline.used_s
        step = TrainingStep(training.variant(self._config, attention, micro_batch))
        if micro_batch == self._config.micro_batch:
            self.correctness[attention] = training.check(step, self._deadline)
            self._steps[attention] = step
        self.rows.append(time_step(step, self._deadline))
        self.longest_s = max(self.longest_s, self._deadline.used_s - began_s)

    def forget(self) -> None:
        """Gives the kept steps' memory back."""
        self._steps = {}


def time_step(step: TrainingStep, deadline: Deadline) -> dict[str, Any]:
    """Returns speed, share of the card's peak, memory and energy.

    Returns:
      {"attention", "micro_batch", "tokens_per_s" (median), "windows_tokens_per_s",
      "mfu" (None unless the card is listed), "compile_s", "memory_bytes" and
      "memory_from" (see `TrainingStep.memory`), "joules_per_million_tokens" (None = not
      measured), "flops_over_formula" (as the compiler counts them), "gpu" (a
      `gpu_stats.GpuStats` right after the last window, or None)}
    """
    config = step.config
    batches = training.window(step)
    start = environment.gpu()
    seconds = timing.alternate({"": lambda: step.run(batches)}, WINDOWS, deadline)[""]
    end = environment.gpu()
    tokens = len(batches) * step.tokens
    speeds = [tokens / s for s in seconds]
    tokens_per_s = statistics.median(speeds)
    flops = train_flops_per_token(config.model, config.objective.max_mask_rate)
    counted = step.compiled_flops()
    memory_bytes, memory_from = step.memory()
    return {
        "attention": config.model.attention,
        "micro_batch": config.micro_batch,
        "tokens_per_s": tokens_per_s,
        "windows_tokens_per_s": speeds,
        "mfu": throughput.mfu(tokens_per_s * flops, 1.0),
        "compile_s": step.compile_s,
        "memory_bytes": memory_bytes,
        "memory_from": memory_from,
        "joules_per_million_tokens": _joules(start, end, tokens * len(seconds)),
        "flops_over_formula": counted and counted / (flops * step.tokens),
        "gpu": end and dataclasses.asdict(end),
    }


def _joules(start: GpuStats | None, end: GpuStats | None, tokens: int) -> float | None:
    """Returns joules per million tokens, of the whole card."""
    if not start or not end or start.energy_j is None or end.energy_j is None:
        return None
    return (end.energy_j - start.energy_j) / tokens * 1e6

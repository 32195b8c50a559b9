"""The whole benchmark, the most telling first, until its time is used."""

import dataclasses
import logging
import signal
from collections.abc import Callable
from statistics import median
from typing import Any

import jax

from bench import extras, peer, report
from bench.step import TrainingStep, check, variant
from bench.timing import Deadline, alternate
from cramjax.config import Config, to_dict
from cramjax.device import monitor, tuning
from cramjax.device.monitor import GpuStats
from cramjax.errors import UserError, is_out_of_memory, one_line
from cramjax.model.flops import train_flops_per_token
from cramjax.run import check_platform
from cramjax.training import train_step

logger = logging.getLogger("cramjax.bench")

WINDOWS = 3
LADDER = (2, 0.5, 4, 0.25)  # further micro-batches over the config's, in this order


def measure(config: Config, minutes: float) -> dict[str, Any]:
    """Measures what the time allows; the first variant is measured in any case.

    Args:
      config: its model, recipe, micro-batch and GLUE protocol count. What it leaves to
        the device (`tuning`) is chosen first.
      minutes: until the end, about: a compilation that takes longer is not broken off.

    Returns:
      {"tokens_per_s", "mfu" (both of the fastest variant), "ratio_to_pytorch" (median,
      at the config's micro-batch; None = skipped), "flops_per_token", "correctness",
      "variants" (see `Variants`), "pytorch", "host", "trials" (what `peer.compare`,
      `extras.host`, `extras.trials` return; None = left out), "interrupted" (by which
      signal, or None), "left_out" ([what, why] each), "seconds", "environment",
      "config"}

    Raises:
      UserError: the config needs a GPU, or the training step fails a check.
    """
    check_platform(config)
    deadline = Deadline(minutes * 60)
    around, before = report.environment(), report.Processors.now()
    logger.info(f"benchmark: {around['device']}, {minutes:g} minutes at most")
    config = tuning.choose(config, train_step.build)
    steps = Variants(config, deadline)
    found: dict[str, Any] = {"pytorch": None, "host": None, "trials": None}
    interrupted = None
    try:
        steps.measure(config.micro_batch)
        _beside(config, steps, found, deadline)
    except KeyboardInterrupt as error:
        if not steps.rows:
            raise
        deadline.skip("the rest", "interrupted")
        interrupted = error.args[0] if error.args else signal.SIGINT
    torch = found["pytorch"] or {}
    return {
        "tokens_per_s": steps.best["tokens_per_s"],
        "mfu": steps.best["mfu"],
        "ratio_to_pytorch": torch["ratio"]["median"] if "ratio" in torch else None,
        "flops_per_token": train_flops_per_token(
            config.model, config.objective.max_mask_rate
        ),
        "correctness": steps.correctness,
        "variants": steps.rows,
        **found,
        "interrupted": interrupted,
        "left_out": deadline.left_out,
        "seconds": deadline.used_s,
        "environment": around | {"others_share": report.others_fraction(before)},
        "config": to_dict(config),
    }


def _beside(
    config: Config,
    steps: "Variants",
    found: dict[str, Any],
    deadline: Deadline,
) -> None:
    """Measures all but the first variant, into `found` and `steps`."""

    def part(name: str, what: str, needed_s: float, work: Callable[[], Any]) -> None:
        if not deadline.allows(what, needed_s):
            return
        logger.info(f"{what} ({deadline.used_s:.0f}s so far)")
        try:
            found[name] = work()
        except Exception as error:  # of any kind: it must not lose what was measured
            deadline.skip(what, f"{type(error).__name__}: {one_line(error)}")

    if why := peer.unsupported(config):
        found["pytorch"] = {"skipped": why}
    else:
        part(
            "pytorch",
            "PyTorch",
            peer.needed_s(),
            lambda: peer.compare(steps.fastest_step(), deadline),
        )
    steps.forget()
    part("host", "the host alone", extras.HOST_S, lambda: extras.host(config))
    part(
        "trials",
        "five trials in one program",
        extras.trials_needed_s(steps.best["compile_s"]),
        lambda: extras.trials(config, steps.best["tokens_per_s"], deadline),
    )
    for factor in LADDER:
        if factor * config.micro_batch >= 1:
            steps.measure(int(factor * config.micro_batch))


class Variants:
    """The attentions and micro-batches that were measured.

    Attributes:
      rows: what `time_step` returned, in the order of measuring.
      correctness: {attention: what `step.check` returned}.
    """

    def __init__(self, config: Config, deadline: Deadline):
        """Measures nothing yet."""
        self._config, self._deadline = config, deadline
        own = config.model.attention
        others = [name for name in tuning.attentions(config) if name != own]
        self._attentions = [own, *others]
        self._steps: dict[str, TrainingStep] = {}
        self._longest_s = 0.0  # that a variant took, compilation and checks included
        self.rows: list[dict[str, Any]] = []
        self.correctness: dict[str, dict[str, Any]] = {}

    @property
    def best(self) -> dict[str, Any]:
        """The fastest one's row."""
        return max(self.rows, key=lambda row: row["tokens_per_s"])

    def fastest_step(self) -> TrainingStep:
        """Returns the step of the fastest attention at the config's micro-batch."""
        return self._steps[self.best["attention"]]

    def forget(self) -> None:
        """Gives the kept steps' memory back."""
        self._steps = {}

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
            if not first and not self._deadline.allows(what, growth * self._longest_s):
                continue
            logger.info(f"{what} ({self._deadline.used_s:.0f}s so far)")
            try:
                self._measure(attention, micro_batch)
            except (UserError, RuntimeError, ValueError) as error:
                if first and is_out_of_memory(error):
                    raise UserError(
                        f"config.micro_batch is {micro_batch}: too much for the memory "
                        f"of {jax.devices()[0].device_kind}; pass a smaller one"
                    ) from error
                if first:
                    raise
                self._deadline.skip(what, one_line(error))
                if micro_batch == self._config.micro_batch:
                    self._attentions.remove(attention)

    def _measure(self, attention: str, micro_batch: int) -> None:
        began_s = self._deadline.used_s
        step = TrainingStep(variant(self._config, attention, micro_batch))
        if micro_batch == self._config.micro_batch:
            self.correctness[attention] = check(step, self._deadline)
            self._steps[attention] = step
        self.rows.append(time_step(step, self._deadline))
        self._longest_s = max(self._longest_s, self._deadline.used_s - began_s)


def time_step(step: TrainingStep, deadline: Deadline) -> dict[str, Any]:
    """Returns speed, fraction of the card's peak, memory and energy.

    Returns:
      {"attention", "micro_batch", "tokens_per_s" (median), "windows_tokens_per_s",
      "mfu" (None unless the card is listed), "compile_s", "memory_bytes" and
      "memory_from" (see `TrainingStep.memory`), "joules_per_million_tokens" (None = not
      measured), "flops_over_formula" (as the compiler counts them), "gpu" (a
      `GpuStats` right after the last window, or None)}
    """
    config = step.config
    batches = step.window()
    before = monitor.read_gpu()
    seconds = alternate({"": lambda: step.run(batches)}, WINDOWS, deadline)[""]
    after = monitor.read_gpu()
    tokens = len(batches) * step.tokens
    speeds = [tokens / s for s in seconds]
    tokens_per_s = median(speeds)
    flops = train_flops_per_token(config.model, config.objective.max_mask_rate)
    counted = step.compiled_flops()
    memory_bytes, memory_from = step.memory()
    return {
        "attention": config.model.attention,
        "micro_batch": config.micro_batch,
        "tokens_per_s": tokens_per_s,
        "windows_tokens_per_s": speeds,
        "mfu": monitor.mfu(tokens_per_s * flops, 1.0),
        "compile_s": step.compile_s,
        "memory_bytes": memory_bytes,
        "memory_from": memory_from,
        "joules_per_million_tokens": _joules(before, after, tokens * len(seconds)),
        "flops_over_formula": counted and counted / (flops * step.tokens),
        "gpu": after and dataclasses.asdict(after),
    }


def _joules(
    before: GpuStats | None, after: GpuStats | None, tokens: int
) -> float | None:
    """Returns joules per million tokens, of the whole card."""
    joules = [stats and stats.energy_j for stats in (before, after)]
    return None if None in joules else (joules[1] - joules[0]) / tokens * 1e6

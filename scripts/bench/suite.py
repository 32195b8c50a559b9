"""The whole benchmark, most important measurements first, until its time is used up."""

import logging
import signal
from typing import Any

import jax

from bench import extras, report
from bench.step import TrainingStep, check, variant
from bench.timing import Deadline
from cramjax.config import Config, to_dict
from cramjax.device import tuning
from cramjax.errors import UserError, is_out_of_memory
from cramjax.model.flops import train_flops_per_token
from cramjax.run import check_platform
from cramjax.training import train_step

logger = logging.getLogger("cramjax.bench")

LADDER = (2, 0.5, 4, 0.25)  # further micro-batches, as multiples of the config's


def measure(config: Config, minutes: float) -> dict[str, Any]:
    """Measures what the time allows, and the first variant in any case.

    Args:
      config: what it leaves to the device (see `tuning`) is chosen first.
      minutes: until the end, approximately: a compilation is not interrupted.

    Returns:
      {"tokens_per_s", "mfu" (both of the fastest variant), "ratio_to_pytorch" (median,
      at the config's micro-batch), "flops_per_token", "correctness" ({attention: see
      `step.check`}), "variants" (see `TrainingStep.measure`), "pytorch", "host",
      "trials" (see `peer.compare`, `extras.host`, `extras.trials`; None if left out),
      "interrupted" (the signal's number, or None), "left_out" ([what, why] each),
      "seconds", "environment", "config"}

    Raises:
      UserError: the config needs a GPU, or its own variant fails a check or does not
        fit into the memory.
    """
    check_platform(config)
    deadline = Deadline(minutes * 60)
    environment, before = report.environment(), report.processors()
    logger.info(f"benchmark: {environment['device']}, at most {minutes:g} minutes")
    config = tuning.choose(config, train_step.build)
    facts: dict[str, Any] = {"correctness": {}, "variants": [], "interrupted": None}
    facts |= {"pytorch": None, "host": None, "trials": None}
    try:
        _measure_all(config, facts, deadline)
    except KeyboardInterrupt as error:
        if not facts["variants"]:
            raise
        deadline.left_out.append(("the rest", "interrupted"))
        facts["interrupted"] = error.args[0] if error.args else signal.SIGINT
    best, pytorch = fastest(facts["variants"]), facts["pytorch"]
    return {
        "tokens_per_s": best["tokens_per_s"],
        "mfu": best["mfu"],
        "ratio_to_pytorch": pytorch and pytorch["ratio"]["median"],
        "flops_per_token": train_flops_per_token(
            config.model, config.objective.max_mask_rate
        ),
        **facts,
        "left_out": deadline.left_out,
        "seconds": deadline.used_s,
        "environment": environment | {"others_share": report.others_fraction(before)},
        "config": to_dict(config),
    }


def fastest(variants: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the variant with the most tokens per second."""
    return max(variants, key=lambda row: row["tokens_per_s"])


def _measure_all(config: Config, facts: dict[str, Any], deadline: Deadline) -> None:
    """Adds each measurement to `facts` as soon as it is complete."""
    own, size = config.model.attention, config.micro_batch
    others = [name for name in tuning.attentions(config) if name != own]
    variants = facts["variants"]

    def measured(attention: str, micro_batch: int) -> TrainingStep:
        step = TrainingStep(variant(config, attention, micro_batch))
        if attention not in facts["correctness"]:
            facts["correctness"][attention] = check(step, deadline)
        variants.append(step.measure(deadline))
        return step

    def named(attention: str, micro_batch: int) -> str:
        return f"{attention}, {micro_batch} x {config.model.max_length}"

    logger.info(named(own, size))
    begun_s = deadline.used_s
    try:
        steps = {own: measured(own, size)}
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"config.micro_batch is {size}: too much for the memory of "
            f"{jax.devices()[0].device_kind}; pass a smaller one"
        ) from error
    variant_s = deadline.used_s - begun_s
    for name in others:
        steps[name] = deadline.attempt(
            named(name, size), variant_s, lambda name=name: measured(name, size)
        )

    def compare() -> dict[str, Any]:
        from bench import peer  # imports torch, which may be missing

        return peer.compare(steps[fastest(variants)["attention"]], deadline)

    needed_s = 120.0 if jax.default_backend() == "gpu" else 70.0  # torch.compile
    facts["pytorch"] = deadline.attempt("PyTorch", needed_s, compare)
    steps.clear()  # frees the memory of their states
    facts["host"] = deadline.attempt(
        "the host alone", extras.HOST_S, lambda: extras.host(config)
    )
    speed = fastest(variants)["tokens_per_s"]
    facts["trials"] = deadline.attempt(
        "five trials in one program",
        extras.trials_needed_s(variants[0]["compile_s"]),
        lambda: extras.trials(config, speed, deadline),
    )
    for rows in (int(factor * size) for factor in LADDER if factor * size >= 1):
        for name in (own, *others):
            deadline.attempt(
                named(name, rows),
                max(rows / size, 1) * variant_s,
                lambda name=name, rows=rows: measured(name, rows),
            )

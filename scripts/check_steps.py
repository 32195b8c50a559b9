"""The steps of scripts/check_gpu.py that use JAX, each in a process of its own.

python scripts/check_steps.py device|speeds --config=FILE --json=FILE [--tiny]
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramjax import files
from cramjax.config import Config
from cramjax.errors import UserError, is_out_of_memory, one_line
from cramjax.flags import parse_command_line
from cramjax.main import guarded

DIVISORS = (1, 2, 4)  # of the config's micro-batch: speeds are measured at these
# The peak that a CPU's estimate in the tiny form assumes; no claim about any CPU.
STAND_IN_FLOPS = 50e9


def device(config: Config, tiny: bool) -> dict[str, Any]:
    """Returns the card, its driver and memory, and versions of libraries.

    Raises:
      UserError: JAX sees no GPU.
    """
    from bench import report

    from cramjax.device import tuning
    from cramjax.run import check_platform

    if not tiny:
        check_platform(dataclasses.replace(config, platform="gpu"))
    return {
        **report.environment(),
        "cudnn": report.package_version("nvidia-cudnn-cu13")
        or report.package_version("nvidia-cudnn-cu12"),
        "cudnn_attention": tuning.has_cudnn(),
        "memory_bytes": tuning.device_bytes(),
        "memory_limit_bytes": tuning.memory_limit_bytes(),
    }


def speeds(config: Config, tiny: bool) -> dict[str, Any]:
    """Measures the training step at those of three micro-batches that fit.

    Returns:
      {"card" (its key in `cards.CARDS`), "attention", "tokens_per_s": {micro-batch:
      ...}, "left_out": {micro-batch: why}, "stand_in_tokens_per_s" (tiny only)}

    Raises:
      UserError: the card is not listed, or nothing fits.
    """
    import jax

    from cramjax.device import tuning
    from cramjax.device.cards import CARDS, of_device
    from cramjax.device.compile import seconds_per_step
    from cramjax.model.flops import train_flops_per_token
    from cramjax.training import train_step

    kind = jax.devices()[0].device_kind
    card = of_device(kind)
    if card is None and not tiny:
        raise UserError(f"{kind} is not in cramjax/device/cards.py: add it there")
    config = tuning.choose(config, train_step.build)
    found: dict[str, Any] = {
        "card": next((key for key, c in CARDS.items() if c is card), "stand-in"),
        "attention": config.model.attention,
        "tokens_per_s": {},
        "left_out": {},
    }
    for rows in (config.micro_batch // n for n in DIVISORS[: 2 if tiny else 3]):
        trial = dataclasses.replace(config, micro_batch=max(rows, 1))
        try:
            step_s = seconds_per_step(
                train_step.build(trial), at_least_s=0.0 if tiny else 5.0
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found["left_out"][rows] = one_line(error)
            continue
        found["tokens_per_s"][rows] = rows * config.model.max_length / step_s
    if not found["tokens_per_s"]:
        raise UserError(f"config.micro_batch is {config.micro_batch}: nothing fits")
    if tiny:
        rate = config.objective.max_mask_rate
        flops = train_flops_per_token(config.model, rate)
        found["stand_in_tokens_per_s"] = STAND_IN_FLOPS / flops
    return found


STEPS = {"device": device, "speeds": speeds}


def run(argv: Sequence[str]) -> None:
    """Runs one step and writes what it returns to --json."""
    name, *rest = argv
    config, extras = parse_command_line(rest, ["json"], switches=["tiny"])
    files.write_json(Path(extras["json"]), STEPS[name](config, bool(extras["tiny"])))


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:], __doc__))

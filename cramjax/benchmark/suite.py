"""The whole benchmark, the most telling first, until its time is used."""

from collections.abc import Callable
from typing import Any

import jax

from cramjax.benchmark import environment, host, peer, trials
from cramjax.benchmark.timing import Deadline
from cramjax.benchmark.variants import Variants
from cramjax.config import to_dict
from cramjax.device import tuning
from cramjax.errors import one_line
from cramjax.flops import train_flops_per_token
from cramjax.run import check_platform
from cramjax.schema import Config

HOST_S = 30.0  # what the host's part needs: it packs a corpus, too
LADDER = (2, 0.5, 4, 0.25)  # further micro-batches over the config's, in this order


def measure(
    config: Config, minutes: float, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measures what the time allows; the first variant is measured in any case.

    Args:
      config: a complete one; its model, recipe, micro-batch and GLUE protocol count.
        What it leaves to the device (`tuning`) is chosen first.
      minutes: to be done in, about: a compilation that takes longer is not broken off.
      say: called with a line for every part that begins.

    Returns:
      {"tokens_per_s", "mfu" (both of the fastest variant), "ratio_to_pytorch" (median,
      at the config's micro-batch; None = skipped), "flops_per_token", "correctness",
      "variants" (see `Variants`), "pytorch", "host", "trials" (what `peer.compare`,
      `host.measure`, `trials.compare` return; None = left out), "left_out" ([what, why]
      each), "seconds", "environment", "config"}

    Raises:
      UserError: the config needs a GPU, or the training step fails a check.
    """
    check_platform(config)
    deadline = Deadline(minutes * 60)
    around = environment.describe()
    say(f"benchmark: {around['device']}, {minutes:g} minutes at most")
    config = tuning.choose(config, say)
    steps = Variants(config, deadline, say)
    steps.measure(config.micro_batch)

    def part(what: str, needed_s: float, work: Callable[[], Any]) -> Any:
        if not deadline.allows(what, needed_s):
            return None
        say(f"{what} ({deadline.used_s:.0f}s so far)")
        try:
            return work()
        except jax.errors.JaxRuntimeError as error:  # the device's memory is full, say
            deadline.skip(what, one_line(error))
            return None

    torch = part(
        "PyTorch", peer.needed_s(), lambda: peer.compare(steps.fastest_step(), deadline)
    )
    steps.forget()
    of_host = part("the host alone", HOST_S, lambda: host.measure(config))
    of_trials = part(
        "five trials in one program",
        trials.needed_s(steps.best["compile_s"]),
        lambda: trials.compare(config, steps.best["tokens_per_s"], deadline),
    )
    for factor in LADDER:
        if factor * config.micro_batch >= 1:
            steps.measure(int(factor * config.micro_batch))
    return {
        "tokens_per_s": steps.best["tokens_per_s"],
        "mfu": steps.best["mfu"],
        "ratio_to_pytorch": (
            torch["ratio"]["median"] if torch and "ratio" in torch else None
        ),
        "flops_per_token": train_flops_per_token(
            config.model, config.objective.max_mask_rate
        ),
        "correctness": steps.correctness,
        "variants": steps.rows,
        "pytorch": torch,
        "host": of_host,
        "trials": of_trials,
        "left_out": deadline.left_out,
        "seconds": deadline.used_s,
        "environment": around,
        "config": to_dict(config),
    }

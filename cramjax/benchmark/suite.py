"""The whole benchmark, the most telling first, until its time is used."""

import signal
from collections.abc import Callable
from typing import Any

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
INTERRUPTED = "interrupted"
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
      `host.measure`, `trials.compare` return; None = left out), "interrupted" (by which
      signal, or None), "left_out" ([what, why] each), "seconds", "environment",
      "config"}

    Raises:
      UserError: the config needs a GPU, or the training step fails a check.
    """
    check_platform(config)
    deadline = Deadline(minutes * 60)
    around, clock = environment.describe(), environment.Processors.now()
    say(f"benchmark: {around['device']}, {minutes:g} minutes at most")
    config = tuning.choose(config, say)
    steps = Variants(config, deadline, say)
    found: dict[str, Any] = {"pytorch": None, "host": None, "trials": None}
    try:
        steps.measure(config.micro_batch)
        _beside(config, steps, found, deadline, say)
    except KeyboardInterrupt as error:
        if not steps.rows:
            raise
        deadline.skip("the rest", INTERRUPTED)
        found["interrupted"] = error.args[0] if error.args else signal.SIGINT
    torch = found["pytorch"]
    others = environment.others_share(clock)
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
        **{name: found[name] for name in ("pytorch", "host", "trials")},
        "interrupted": found.get("interrupted"),
        "left_out": deadline.left_out,
        "seconds": deadline.used_s,
        "environment": around | {"others_share": others},
        "config": to_dict(config),
    }


def _beside(
    config: Config,
    steps: Variants,
    found: dict[str, Any],
    deadline: Deadline,
    say: Callable[[str], None],
) -> None:
    """Measures all but the first variant, into `found` and `steps`."""

    def part(name: str, what: str, needed_s: float, work: Callable[[], Any]) -> None:
        if not deadline.allows(what, needed_s):
            return
        say(f"{what} ({deadline.used_s:.0f}s so far)")
        try:
            found[name] = work()
        except Exception as error:  # of any kind: what was measured is not to be lost
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
    part("host", "the host alone", HOST_S, lambda: host.measure(config))
    part(
        "trials",
        "five trials in one program",
        trials.needed_s(steps.best["compile_s"]),
        lambda: trials.compare(config, steps.best["tokens_per_s"], deadline),
    )
    for factor in LADDER:
        if factor * config.micro_batch >= 1:
            steps.measure(int(factor * config.micro_batch))

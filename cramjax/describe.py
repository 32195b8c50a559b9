"""What a config asks for, computed without training: size, FLOPs, memory, tokens."""

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.config import Config
from cramjax.device.cards import CARDS, PCIE_GBPS, Card
from cramjax.device.compile import tree_bytes
from cramjax.model.flops import train_flops_by_part
from cramjax.training import schedules, train_step
from cramjax.training.clock import tokens_bought


def describe(config: Config, mfu: float) -> dict[str, Any]:
    """Returns plain numbers, ready for JSON.

    Args:
      config: nothing of it is run.
      mfu: model FLOPs utilization, the fraction of a card's peak that training reaches.

    Returns:
      {"parameters": {part: count}, "flops_per_token": {part: FLOPs, forward and
      backward}, "state_bytes": {part: bytes}, "cards": {card: see `on_card`}}
    """
    flops = train_flops_by_part(config.model, config.objective.max_mask_rate)
    per_token = sum(flops.values())
    return {
        "parameters": _parameters_by_part(state_shapes(config).params),
        "flops_per_token": flops,
        "state_bytes": state_bytes(config),
        "cards": {
            name: on_card(config, card, card.peak * mfu / per_token, per_token)
            for name, card in CARDS.items()
        },
    }


@functools.lru_cache(maxsize=1)
def state_shapes(config: Config) -> train_step.TrainState:
    """Returns the training state's shapes."""
    return jax.eval_shape(lambda: train_step.init_state(config))


def _parameters_by_part(params: Any) -> dict[str, int]:
    parts = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts[_part([entry.key for entry in path])] += math.prod(leaf.shape)
    order = ("embedding", "attention", "feed-forward", "norms", "head")
    return {part: parts[part] for part in order if parts[part]}


def _part(path: list[str]) -> str:
    *modules, _ = path
    if modules and modules[-1].endswith("norm"):
        return "norms"
    names = {"embedding": "embedding", "attention": "attention", "ffn": "feed-forward"}
    return next((names[module] for module in modules if module in names), "head")


def state_bytes(config: Config) -> dict[str, int]:
    """Returns {part: bytes} of the training state."""
    state = state_shapes(config)
    parts = {
        "parameters": tree_bytes(state.params),
        "accumulated gradients": tree_bytes(state.opt_state.acc_grads),
        "optimizer": tree_bytes(state.opt_state.inner_opt_state),
        "averages": tree_bytes(state.averages),
    }
    return parts | {"counters": tree_bytes(state) - sum(parts.values())}


def all_reduce_s(config: Config, card: Card) -> dict[str, float]:
    """Returns {link: estimated seconds to average the gradients of `config.devices`}.

    Each GPU of a ring sends almost twice their size, and receives as much meanwhile.
    """
    size = 4 * sum(_parameters_by_part(state_shapes(config).params).values())
    sent = 2 * (config.devices - 1) / config.devices * size
    links = {"NVLink": card.nvlink_gbps, "PCIe 4.0": PCIE_GBPS}
    return {link: sent / (1e9 * gbps) for link, gbps in links.items() if gbps}


def all_reduce_line(config: Config, card: Card) -> str:
    """Returns a sentence about `all_reduce_s`."""
    times = (
        f"{1e3 * s:.1f} ms over {n}" for n, s in all_reduce_s(config, card).items()
    )
    return (
        f"{config.devices} x {card.title}: averaging the gradients takes "
        f"{' or '.join(times)}, once per update (estimated)"
    )


def on_card(
    config: Config, card: Card, tokens_per_s: float, flops: float
) -> dict[str, float]:
    """Returns what the budget buys at a speed, on `config.devices` cards.

    They compute, and then average gradients over the fastest link that such cards have.

    Args:
      config: its budget, batch and micro-batch (0: of the whole batch).
      card: the card.
      tokens_per_s: its speed.
      flops: model FLOPs per token.

    Returns:
      {"tokens_per_s" (of all), "hours", "tokens", "updates" (of the optimizer, the
      batch ramp included)}
    """
    if config.devices > 1:
        update = config.batch.sequences * config.model.max_length
        seconds = update / (config.devices * tokens_per_s)
        tokens_per_s = update / (seconds + min(all_reduce_s(config, card).values()))
    tokens = tokens_bought(config.budget, tokens_per_s, flops)
    rows = config.micro_batch or config.batch.sequences
    micro_steps = tokens / (rows * config.model.max_length)
    return {
        "tokens_per_s": tokens_per_s,
        "hours": tokens / tokens_per_s / 3600,
        "tokens": tokens,
        "updates": micro_steps * updates_per_micro_step(config),
    }


def updates_per_micro_step(config: Config) -> float:
    """Returns the mean over the budget, the batch ramp included."""
    progress_N = (jnp.arange(10_000) + 0.5) / 10_000
    accumulated_N = schedules.accumulation_steps(
        progress_N,
        config.micro_batch or config.batch.sequences,
        config.batch.sequences,
        config.batch.ramp_share,
    )
    return float(jnp.mean(1 / accumulated_N))

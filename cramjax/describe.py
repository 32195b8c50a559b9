"""What a config asks for, computed without training: size, FLOPs, memory, tokens."""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.config import Config
from cramjax.device.cards import CARDS
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
            name: on_card(config, card.peak * mfu / per_token, per_token)
            for name, card in CARDS.items()
        },
    }


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


def on_card(config: Config, tokens_per_s: float, flops: float) -> dict[str, float]:
    """Returns what the budget buys at a speed.

    Args:
      config: its budget, batch and micro-batch (0: of the whole batch).
      tokens_per_s: the speed.
      flops: model FLOPs per token.

    Returns:
      {"tokens_per_s", "hours", "tokens", "updates" (of the optimizer, the batch ramp
      included)}
    """
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

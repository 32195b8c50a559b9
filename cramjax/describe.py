"""What a config asks for, worked out without training: size, FLOPs, memory, tokens."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.config import Config
from cramjax.device.cards import CARDS
from cramjax.model.flops import train_flops_by_part
from cramjax.training import schedules, train_step
from cramjax.training.clock import tokens_bought


def describe(config: Config, mfu: float) -> dict[str, Any]:
    """Returns plain numbers, ready for JSON.

    Args:
      config: nothing of it is run.
      mfu: model FLOPs utilisation, the share of a card's peak that training reaches.

    Returns:
      {"parameters": {part: count}, "flops_per_token": {part: FLOPs, forward and
      backward}, "state_bytes": {part: bytes}, "cards": {card: {"tokens_per_s", "hours",
      "tokens", "updates"}}}; hours and tokens are those of the budget on that card,
      updates those of the batch's ramp, in whole micro-batches.
    """
    flops = train_flops_by_part(config.model, config.objective.max_mask_rate)
    return {
        "parameters": _parameters_by_part(state_shapes(config).params),
        "flops_per_token": flops,
        "state_bytes": state_bytes(config),
        "cards": {
            name: _on_card(config, card.peak * mfu, sum(flops.values()))
            for name, card in CARDS.items()
        },
    }


def state_shapes(config: Config) -> train_step.TrainState:
    """Returns the training state's shapes."""
    return jax.eval_shape(lambda: train_step.init_state(config))


def _parameters_by_part(params: Any) -> dict[str, int]:
    parts = dict.fromkeys(
        ("embedding", "attention", "feed-forward", "norms", "head"), 0
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts[_part([entry.key for entry in path])] += math.prod(leaf.shape)
    return {part: count for part, count in parts.items() if count}


def _part(path: list[str]) -> str:
    *modules, _ = path
    if modules and modules[-1].endswith("norm"):
        return "norms"
    names = {"embedding": "embedding", "attention": "attention", "ffn": "feed-forward"}
    return next((names[module] for module in modules if module in names), "head")


def state_bytes(config: Config) -> dict[str, int]:
    """Returns the bytes of the training state, {part: bytes}."""
    state = state_shapes(config)

    def size(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)

    parts = {
        "parameters": size(state.params),
        "accumulated gradients": size(state.opt_state.acc_grads),
        "optimizer": size(state.opt_state.inner_opt_state),
        "averages": size(state.averages),
    }
    return parts | {"counters": size(state) - sum(parts.values())}


def _on_card(config: Config, flops_per_s: float, flops: float) -> dict[str, float]:
    tokens_per_s = flops_per_s / flops
    tokens = tokens_bought(config.budget, tokens_per_s, flops)
    rows = config.micro_batch or config.batch.sequences
    return {
        "tokens_per_s": tokens_per_s,
        "hours": tokens / tokens_per_s / 3600,
        "tokens": tokens,
        "updates": updates_bought(config, rows, tokens),
    }


def updates_bought(config: Config, rows: int, tokens: float) -> float:
    """Returns the optimizer's updates in so many tokens, the batch ramp included.

    Args:
      config: with the ramp.
      rows: of a micro-batch.
      tokens: to be trained on.
    """
    micro_steps = tokens / (rows * config.model.max_length)
    progress_N = (jnp.arange(10_000) + 0.5) / 10_000
    accumulated_N = schedules.accumulation_steps(
        progress_N, rows, config.batch.sequences, config.batch.ramp_share
    )
    return micro_steps * float(jnp.mean(1 / accumulated_N))

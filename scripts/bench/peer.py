"""Our training step beside PyTorch's: first the same numbers, then their speeds."""

import dataclasses
import gc
from statistics import median
from typing import Any

import jax
import numpy as np
import optax
import torch

from bench.step import TrainingStep, in_float32, loss, masked_rows
from bench.timing import Deadline, alternate, ratios, seconds_of
from bench.torch_peer import Peer
from cramjax.config import Config
from cramjax.errors import UserError
from cramjax.model.flops import train_flops_by_part

ROUNDS = 5
TOLERANCE = 1e-3  # nats of the loss; of the gradient's norm, a fraction

# The peer is crammed-bert with the defaults of all keys but these.
_FREE = ("width", "ffn_width", "layers", "heads", "vocab_size", "max_length")
_FREE += ("attention", "norm_eps", "init", "init_std", "mask_rate")
_FREE += ("mask_share", "random_share", "lawa_every")


def compare(step: TrainingStep, deadline: Deadline) -> dict[str, Any]:
    """Times windows of our step and of PyTorch's in turn.

    Both get the same batches from the host's memory, mask them, and end every
    micro-batch in an update with clipping. PyTorch starts with a copy of our weights.

    Returns:
      {"attention", "micro_batch", "ratio" (our tokens/s over PyTorch's: "median",
      "min", "max", "rounds"), "tokens_per_s" (of PyTorch), "our_tokens_per_s", "loss",
      "our_loss", "gradient_norm", "our_gradient_norm", "products_over_formula",
      "parameters", "compiled", "memory_bytes" (PyTorch's peak; None on a CPU)}.

    Raises:
      UserError: the peer lacks something of the config, or its numbers differ.
    """
    require_supported(step.config)
    on_gpu = jax.default_backend() == "gpu"
    peer = Peer(step.config, step.state.params, "cuda" if on_gpu else "cpu")
    try:
        facts = same_model(step, peer) | _speeds(step, peer, deadline)
        facts["memory_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None
        if on_gpu and torch.cuda.memory_stats().get("num_alloc_retries", 0):
            raise UserError(
                "it ran short of memory beside our step, so its speed is too low; pass "
                "a smaller --config.micro_batch"
            )
        return facts
    finally:
        del peer
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def require_supported(config: Config) -> None:
    """Raises a UserError if the peer lacks something of the config."""
    for section in ("model", "objective", "averaging", "optimizer"):
        ours, defaults = getattr(config, section), getattr(Config(), section)
        names = [field.name for field in dataclasses.fields(ours)]
        for key in ["name"] if section == "optimizer" else names:
            value = getattr(ours, key)
            is_float32 = key == "dtype" and value == "float32"
            if not (key in _FREE or is_float32 or value == getattr(defaults, key)):
                raise UserError(f"it has no {section}.{key}={value!r}")


def same_model(step: TrainingStep, peer: Peer) -> dict[str, Any]:
    """Compares loss, gradient, parameters and FLOPs in float32.

    Raises:
      UserError: they differ, so it is another model.
    """
    config, params = step.config, step.state.params
    masked = masked_rows(config)
    # A GPU's float32 products keep 10 bits of mantissa unless more are asked for.
    with jax.default_matmul_precision("highest"):
        gradient_of = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        our_loss, grads = gradient_of(params, in_float32(config.model), masked)
        our_norm = float(optax.tree.norm(grads))
    inputs = (np.array(x) for x in masked if x is not None)
    their_loss, norm, flops = peer.float32_loss_and_norm(*inputs)
    parts = train_flops_by_part(config.model, config.objective.mask_rate)
    products = sum(parts.values()) - parts["attention products"]
    facts = {
        "our_loss": float(our_loss),
        "loss": their_loss,
        "our_gradient_norm": our_norm,
        "gradient_norm": norm,
        "products_over_formula": flops / masked.tokens_BxL.size / products,
        "parameters": peer.parameters,
    }
    count = sum(x.size for x in jax.tree.leaves(params))
    for what, value, expected, tolerance in (
        ("parameters", peer.parameters, count, 0),
        ("the loss of our weights", their_loss, facts["our_loss"], TOLERANCE),
        ("the gradient's norm", norm, our_norm, TOLERANCE * our_norm),
        ("FLOPs over ours", facts["products_over_formula"], 1.0, 1e-6),
    ):
        if not abs(value - expected) <= tolerance:
            raise UserError(
                f"it is another model: {what}: {value:.6g}, not {expected:.6g}"
            )
    return facts


def _speeds(step: TrainingStep, peer: Peer, deadline: Deadline) -> dict[str, Any]:
    warm_up = peer.prepared(step.random_batches(2))
    peer.compile(warm_up)
    batches = step.window(seconds_of(lambda: peer.run(warm_up)) / 2)
    theirs = peer.prepared(batches)
    sides = {"ours": lambda: step.run(batches), "theirs": lambda: peer.run(theirs)}
    seconds = alternate(sides, ROUNDS, deadline)
    tokens = len(batches) * step.tokens
    return {
        "attention": step.config.model.attention,
        "micro_batch": step.config.micro_batch,
        "compiled": peer.compiled,
        "ratio": ratios(seconds["theirs"], seconds["ours"]),
        "tokens_per_s": tokens / median(seconds["theirs"]),
        "our_tokens_per_s": tokens / median(seconds["ours"]),
    }

"""Our training step beside PyTorch's: the same numbers first, then their speeds."""

import dataclasses
import gc
import importlib.util
from statistics import median
from typing import Any

import jax
import numpy as np

from bench.step import TrainingStep, float32_loss_and_norm, masked_rows
from bench.timing import Deadline, alternate, ratios, seconds_of
from cramjax.config import Config
from cramjax.errors import one_line
from cramjax.model.flops import train_flops_by_part

ROUNDS = 5
BESIDE = " (beside ours; pass a smaller --config.micro_batch)"
TOLERANCE = 1e-3  # nats of the loss; of the gradient's norm, a fraction

# The peer is crammed-bert as the defaults have it, but for these keys.
_SIZES = ("width", "ffn_width", "layers", "heads", "vocab_size", "max_length")
_FREE = (*_SIZES, "attention", "norm_eps", "init", "init_std", "mask_rate")
_FREE += ("mask_share", "random_share", "lawa_every")
_ALSO = {"dtype": "float32"}


def unsupported(config: Config) -> str:
    """Returns why PyTorch cannot be compared with this config here, or ""."""
    recipe = Config()
    for section in ("model", "objective", "averaging", "optimizer"):
        ours, peers = getattr(config, section), getattr(recipe, section)
        names = [field.name for field in dataclasses.fields(ours)]
        for key in ["name"] if section == "optimizer" else names:
            value = getattr(ours, key)
            allowed = (getattr(peers, key), _ALSO.get(key))
            if key not in _FREE and value not in allowed:
                return f"it has no {section}.{key}={value!r}"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # e.g. built for another CUDA
        return f"torch cannot be imported ({one_line(error)})"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return ""


def needed_s() -> float:
    """Returns about how long `compare` takes: torch.compile is slow."""
    return 120.0 if jax.default_backend() == "gpu" else 70.0


def compare(step: TrainingStep, deadline: Deadline) -> dict[str, Any]:
    """Times windows of our step and of PyTorch's, one after the other.

    Both get the same batches from the host's memory, mask them, and end every
    micro-batch in an update with clipping; and then, if the config accumulates, with an
    update at the end of its final batch only. PyTorch has a copy of our weights.

    Returns:
      {"skipped": why}, or {"attention", "micro_batch", "ratio" (our tokens/s over
      PyTorch's: "median", "min", "max", "rounds"), "tokens_per_s" (of PyTorch),
      "our_tokens_per_s", "accumulating" (the same three at the final batch size, and
      "micro_batches" in it), "loss", "our_loss", "gradient_norm", "our_gradient_norm",
      "products_over_formula", "parameters", "fused_adamw", "compiled",
      "memory_bytes" (its peak; None on a CPU)}.
    """
    if why := unsupported(step.config):
        return {"skipped": why}
    import torch

    from bench.torch_peer import Peer

    on_gpu = jax.default_backend() == "gpu"
    try:
        peer = Peer(step.config, step.state.params, "cuda" if on_gpu else "cpu")
        facts = _same_model(step, peer)
        if "skipped" in facts:
            return facts
        facts |= _speeds(step, peer, deadline)
        if on_gpu:
            facts["memory_bytes"] = torch.cuda.max_memory_allocated()
            if retries := torch.cuda.memory_stats().get("num_alloc_retries", 0):
                return {"skipped": f"it ran short of memory {retries} times{BESIDE}"}
        return facts
    except RuntimeError as error:  # out of memory, torch.compile, the driver
        why = one_line(error)
        return {"skipped": why + BESIDE * ("out of memory" in why)}
    finally:
        peer = None
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def _same_model(step: TrainingStep, peer: Any) -> dict[str, Any]:
    """Compares loss, gradient, parameters and FLOPs: is it the same model?"""
    config, params = step.config, step.state.params
    masked = masked_rows(config)
    our_loss, our_norm = float32_loss_and_norm(config.model, params, masked)
    loss, norm, flops = peer.float32_loss_and_norm(
        *(np.array(x) for x in masked if x is not None)
    )
    parts = train_flops_by_part(config.model, config.objective.mask_rate)
    products = sum(parts.values()) - parts["attention products"]
    facts = {
        "our_loss": our_loss,
        "loss": loss,
        "our_gradient_norm": our_norm,
        "gradient_norm": norm,
        "products_over_formula": flops / masked[0].size / products,
        "parameters": peer.parameters,
    }
    count = sum(x.size for x in jax.tree.leaves(params))
    for what, value, expected, tolerance in (
        ("parameters", peer.parameters, count, 0),
        ("the loss of our weights", loss, our_loss, TOLERANCE),
        ("the gradient's norm", norm, our_norm, TOLERANCE * our_norm),
        ("FLOPs over ours", facts["products_over_formula"], 1.0, 1e-6),
    ):
        if not abs(value - expected) <= tolerance:
            why = f"it is another model: {what}: {value:.6g}, not {expected:.6g}"
            return facts | {"skipped": why}
    return facts


def _speeds(step: TrainingStep, peer: Any, deadline: Deadline) -> dict[str, Any]:
    warm_up = peer.prepared(step.random_batches(2))
    peer.compile(warm_up)
    theirs_s = seconds_of(lambda: peer.run(warm_up)) / 2
    batches = step.window(theirs_s)
    theirs = peer.prepared(batches)

    def ratio(last: bool, accumulate: int) -> dict[str, Any]:
        seconds = alternate(
            {
                "ours": lambda: step.run(batches, last),
                "theirs": lambda: peer.run(theirs, accumulate),
            },
            ROUNDS,
            deadline,
        )
        tokens = len(batches) * step.tokens
        return {
            "ratio": ratios(seconds["theirs"], seconds["ours"]),
            "tokens_per_s": tokens / median(seconds["theirs"]),
            "our_tokens_per_s": tokens / median(seconds["ours"]),
        }

    facts = {
        "attention": step.config.model.attention,
        "micro_batch": step.config.micro_batch,
        "fused_adamw": peer.fused,
        "compiled": peer.compiled,
        "memory_bytes": None,
        "accumulating": None,
        **ratio(last=False, accumulate=1),
    }
    count = step.accumulated
    slower = min(facts["tokens_per_s"], facts["our_tokens_per_s"])
    round_s = 2 * count * step.tokens / slower
    if count > 1 and deadline.allows("PyTorch, accumulating", round_s):
        batches = [batches[i % len(batches)] for i in range(count)]
        theirs = [theirs[i % len(theirs)] for i in range(count)]
        found = ratio(last=True, accumulate=count)
        facts["accumulating"] = {"micro_batches": count, **found}
    return facts

"""Our training step beside PyTorch's: the same numbers first, then their speeds."""

import gc
import importlib.util
from typing import Any

import jax
import numpy as np

from cramjax.benchmark import timing, training
from cramjax.benchmark.timing import Deadline
from cramjax.benchmark.training import TrainingStep
from cramjax.errors import one_line
from cramjax.flops import train_flops_by_part
from cramjax.schema import Config

ROUNDS = 5
BESIDE = " (beside ours; pass a smaller --config.micro_batch)"
TOLERANCE = 1e-3  # nats of the loss; of the gradient's norm, a share

# What the peer is written for: crammed-bert, and no other architecture or recipe.
_MODEL = {
    "dtype": ("float32", "bfloat16"),
    "mixing": ("attention",),
    "ffn": ("gated",),
    "ffn_every": (1,),
    "repeats": (1,),
    "activation": ("gelu",),
    "positions": ("scaled_sinusoidal",),
    "token_types": (0,),
    "norm": ("layernorm",),
    "norm_placement": ("pre",),
    "embedding_width": (0,),
    "embedding_norm": (True,),
    "first_norm": (True,),
    "final_norm": (True,),
    "qkv_bias": (False,),
    "linear_bias": (False,),
    "head_transform": (False,),
    "decoder_bias": (False,),
    "sparse_prediction": (True,),
}
_OBJECTIVE = {
    "final_mask_rate": (0.0,),
    "separate_documents": (False,),
    "dropout": (0.0,),
}
_OPTIMIZER = {"name": ("adamw",)}
_AVERAGING = {"ema_decay": (0.0,), "lawa_last": (0,)}


def unsupported(config: Config) -> str:
    """Returns why PyTorch cannot be compared with this config here, or ""."""
    for section, allowed in (
        ("model", _MODEL),
        ("objective", _OBJECTIVE),
        ("optimizer", _OPTIMIZER),
        ("averaging", _AVERAGING),
    ):
        for key, values in allowed.items():
            value = getattr(getattr(config, section), key)
            if value not in values:
                return f"it has no {section}.{key}={value!r}"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # for another CUDA, say
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
      "memory_bytes" (its peak; None on a CPU), "processor_s_per_step" ({"ours",
      "pytorch"}: of all threads, medians)}.
    """
    if why := unsupported(step.config):
        return {"skipped": why}
    import torch

    from cramjax.benchmark.torch_peer import Peer

    try:
        peer = Peer(step.config, step.state.params, _device())
        facts = _same_shape(step, peer)
        if "skipped" in facts:
            return facts
        facts |= _speeds(step, peer, deadline)
        if _device() == "cuda":
            facts["memory_bytes"] = torch.cuda.max_memory_allocated()
            if retries := torch.cuda.memory_stats().get("num_alloc_retries", 0):
                return {"skipped": f"it ran short of memory {retries} times{BESIDE}"}
        return facts
    except RuntimeError as error:  # out of memory, torch.compile, the driver
        why = one_line(error)
        if "out of memory" in why:
            why += BESIDE
        return {"skipped": why}
    finally:
        peer = None
        gc.collect()
        if _device() == "cuda":
            torch.cuda.empty_cache()


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _same_shape(step: TrainingStep, peer: Any) -> dict[str, Any]:
    """Compares loss, gradient, parameters and FLOPs: is it the same model?"""
    config, params = step.config, step.state.params
    masked = training.masked_rows(config)
    ours = training.loss_and_norm(training.in_float32(config.model), params, masked)
    theirs = peer.float32_loss_and_norm(*(np.array(x) for x in masked if x is not None))
    parts = train_flops_by_part(config.model, config.objective.mask_rate)
    products = sum(parts.values()) - parts["attention products"]
    facts = {
        "our_loss": ours[0],
        "loss": theirs.loss,
        "our_gradient_norm": ours[1],
        "gradient_norm": theirs.gradient_norm,
        "products_over_formula": theirs.product_flops / masked[0].size / products,
        "parameters": peer.parameters,
    }
    count = sum(x.size for x in jax.tree.leaves(params))
    for what, value, expected, tolerance in (
        ("parameters", peer.parameters, count, 0),
        ("the loss of our weights", theirs.loss, ours[0], TOLERANCE),
        ("the gradient's norm", theirs.gradient_norm, ours[1], TOLERANCE * ours[1]),
        ("FLOPs over ours", facts["products_over_formula"], 1.0, 1e-6),
    ):
        if not abs(value - expected) <= tolerance:
            why = f"it is another model: {what}: {value:.6g}, not {expected:.6g}"
            return facts | {"skipped": why}
    return facts


def _speeds(step: TrainingStep, peer: Any, deadline: Deadline) -> dict[str, Any]:
    config = step.config
    warm_up = peer.prepared(training.random_batches(config, 2))
    peer.compile(warm_up)
    theirs_s = timing.seconds_of(lambda: peer.run(warm_up)) / 2
    batches = training.window(step, theirs_s)
    of_torch = peer.prepared(batches)
    facts = {
        "attention": config.model.attention,
        "micro_batch": config.micro_batch,
        "fused_adamw": peer.fused,
        "compiled": peer.compiled,
        "memory_bytes": None,
        "accumulating": None,
    }
    busy_s: dict[str, list[float]] = {"ours": [], "pytorch": []}
    both = {
        "ours": timing.counting(lambda: step.run(batches), busy_s["ours"]),
        "theirs": timing.counting(lambda: peer.run(of_torch), busy_s["pytorch"]),
    }
    tokens = len(batches) * step.tokens
    facts |= _ratio(timing.alternate(both, ROUNDS, deadline), tokens)
    facts["processor_s_per_step"] = {
        side: timing.median(s) / len(batches) for side, s in busy_s.items()
    }
    count = training.accumulated(config)
    if count > 1:
        batches = [batches[i % len(batches)] for i in range(count)]
        of_torch = [of_torch[i % len(of_torch)] for i in range(count)]
        both = {
            "ours": lambda: step.run(batches, last=True),
            "theirs": lambda: peer.run(of_torch, accumulate=count),
        }
        tokens = count * step.tokens
        window_s = tokens / min(facts["tokens_per_s"], facts["our_tokens_per_s"])
        if deadline.allows("PyTorch, accumulating", 2 * window_s):
            found = _ratio(timing.alternate(both, ROUNDS, deadline), tokens)
            facts["accumulating"] = {"micro_batches": count, **found}
    return facts


def _ratio(seconds: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    return {
        "ratio": timing.ratios(seconds["theirs"], seconds["ours"]),
        "tokens_per_s": tokens / timing.median(seconds["theirs"]),
        "our_tokens_per_s": tokens / timing.median(seconds["ours"]),
    }

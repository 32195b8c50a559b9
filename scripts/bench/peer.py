"""Our training step beside PyTorch's: first the same numbers, then their speeds.

PyTorch's is written for speed: one kernel for query, key and value and one for gate and
value, `scaled_dot_product_attention`, the decoder at the predicted positions only,
fused AdamW, torch.compile; bfloat16 by autocast, with a residual stream of that type,
too. Axes as in `cramjax.model.encoder`.
"""

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import jax
import numpy as np
import optax
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench.step import TrainingStep, loss_of, masked_rows
from bench.timing import Deadline, alternate, ratios, seconds_of
from cramjax.config import Config, ModelConfig
from cramjax.errors import UserError
from cramjax.model.encoder import on_any_device
from cramjax.model.flops import predicted_per_row, train_flops_by_part
from cramjax.model.layers import sinusoids
from cramjax.tokens import MASK, PAD

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


def same_model(step: TrainingStep, peer: "Peer") -> dict[str, Any]:
    """Compares loss, gradient, parameters and FLOPs in float32.

    Raises:
      UserError: they differ, so it is another model.
    """
    config, params = step.config, step.state.params
    masked = masked_rows(config)
    # A GPU's float32 products keep 10 bits of mantissa unless more are asked for.
    with jax.default_matmul_precision("highest"):
        gradient_of = jax.jit(jax.value_and_grad(loss_of), static_argnums=1)
        exact = on_any_device(config.model, dtype="float32")
        our_loss, grads = gradient_of(params, exact, masked)
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


def _speeds(step: TrainingStep, peer: "Peer", deadline: Deadline) -> dict[str, Any]:
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


class Layer(nn.Module):
    """Norm, attention, residual; norm, gated feed-forward, residual."""

    def __init__(self, model: ModelConfig):
        """Makes the weights; only the norms have biases."""
        super().__init__()
        self.heads, width = model.heads, model.width
        self.attention_norm = nn.LayerNorm(width, eps=model.norm_eps)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.LayerNorm(width, eps=model.norm_eps)
        self.gate_value = nn.Linear(width, model.ffn_width, bias=False)
        self.ffn_output = nn.Linear(model.ffn_width // 2, width, bias=False)

    def forward(self, x_BxLxD: torch.Tensor) -> torch.Tensor:
        """Returns x_BxLxD."""
        rows, length, _ = x_BxLxD.shape
        qkv_BxLx3xHxK = self.query_key_value(self.attention_norm(x_BxLxD)).view(
            rows, length, 3, self.heads, -1
        )
        q, k, v = (part.transpose(1, 2) for part in qkv_BxLx3xHxK.unbind(2))
        mixed_BxHxLxK = functional.scaled_dot_product_attention(q, k, v)
        mixed_BxLxD = mixed_BxHxLxK.transpose(1, 2).reshape(x_BxLxD.shape)
        x_BxLxD = x_BxLxD + self.attention_output(mixed_BxLxD)
        gate_BxLxF, value_BxLxF = self.gate_value(self.ffn_norm(x_BxLxD)).chunk(2, -1)
        return x_BxLxD + self.ffn_output(functional.gelu(gate_BxLxF) * value_BxLxF)


class MaskedLM(nn.Module):
    """crammed-bert with its sparse head and the mean cross-entropy."""

    def __init__(self, model: ModelConfig, dtype: torch.dtype):
        """Makes float32 weights that compute in `dtype` where autocast says so."""
        super().__init__()
        self.dtype = dtype
        # As in our model, <pad> gets a gradient as an answer, not as an input.
        self.word = nn.Embedding(model.vocab_size, model.width, padding_idx=PAD)
        self.scale = nn.Parameter(torch.empty(1))
        table_LxD = torch.from_numpy(sinusoids(model.max_length, model.width))
        self.register_buffer("table_LxD", table_LxD)
        self.embedding_norm = nn.LayerNorm(model.width, eps=model.norm_eps)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.layers))
        self.final_norm = nn.LayerNorm(model.width, eps=model.norm_eps)

    def forward(
        self,
        tokens_BxL: torch.Tensor,
        positions_BxP: torch.Tensor,
        targets_BxP: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the loss in nats."""
        x_BxLxD = self.word(tokens_BxL) + self.scale * self.table_LxD
        x_BxLxD = self.embedding_norm(x_BxLxD).to(self.dtype)
        for layer in self.layers:
            x_BxLxD = layer(x_BxLxD)
        x_BxLxD = self.final_norm(x_BxLxD)
        picked_BxPxD = x_BxLxD.take_along_dim(positions_BxP[..., None], 1)
        logits_NxV = functional.linear(picked_BxPxD, self.word.weight).flatten(0, 1)
        return functional.cross_entropy(logits_NxV.float(), targets_BxP.flatten())


class Peer:
    """Weights, optimizer and step.

    Attributes:
      model: the PyTorch module.
      parameters: the number of trained parameters.
      compiled: whether the loss is compiled by torch.compile.
    """

    def __init__(self, config: Config, params: Mapping[str, Any], device: str):
        """Copies the weights.

        Args:
          config: one that `peer.require_supported` accepts.
          params: the tree of `cramjax.model.MaskedLM`.
          device: "cuda" or "cpu".
        """
        self._config, self._device = config, device
        self._dtype = getattr(torch, config.model.dtype)
        self.model = MaskedLM(config.model, self._dtype)
        load(self.model, params)
        self.model.to(device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        named, of = list(self.model.named_parameters()), config.optimizer
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for name, p in named if "norm" not in name]},
                {"params": [p for n, p in named if "norm" in n], "weight_decay": 0.0},
            ],
            lr=of.learning_rate,
            betas=(of.b1, of.b2),
            eps=of.eps,
            weight_decay=of.weight_decay,
            fused=True,
        )
        self.compiled = False
        self._loss = self._masked_loss
        if device == "cuda":  # float32 products as JAX's, with 10 bits of mantissa
            torch.set_float32_matmul_precision("high")

    def compile(self, batches: Sequence[torch.Tensor]) -> None:
        """Compiles the loss, on prepared batches.

        On a CPU that needs a C++ compiler; without one the loss stays as it is.
        """
        self._loss = torch.compile(self._masked_loss)
        try:
            self.run(batches)
            self.compiled = True
        except Exception:  # Inductor raises many kinds
            if self._device == "cuda":
                raise
            self._loss = self._masked_loss
            self.run(batches)

    def prepared(self, batches: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Returns the batches for `run`, in memory that the GPU reads asynchronously.

        A copy from other memory would synchronize the host with the GPU.
        """
        tensors = [torch.from_numpy(x.astype(np.int64)) for x in batches]
        return [x.pin_memory() for x in tensors] if self._device == "cuda" else tensors

    def run(self, batches: Sequence[torch.Tensor]) -> float:
        """Trains on prepared batches; returns the last loss when the work is done."""
        loss, clip = torch.zeros(()), self._config.optimizer.clip_norm
        half = self._dtype != torch.float32
        for tokens_BxL in batches:
            on_device = tokens_BxL.to(self._device, non_blocking=True)
            with torch.autocast(self._device, self._dtype if half else None, half):
                loss = self._loss(on_device)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for the device

    def float32_loss_and_norm(self, *masked: np.ndarray) -> tuple[float, float, int]:
        """Returns loss, gradient norm, and FLOPs of the products with a weight.

        It takes the arguments of `MaskedLM`, and computes in float32, not compiled.
        """
        inputs = [torch.from_numpy(x.astype(np.int64)).to(self._device) for x in masked]
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        self.model.dtype = torch.float32
        with FlopCounterMode(display=False) as counter:
            loss = self.model(*inputs)
            loss.backward()
        self.model.dtype = self._dtype
        torch.set_float32_matmul_precision(precision)
        norms = [p.grad.norm() for p in self.model.parameters()]
        norm = torch.stack(norms).norm().item()
        self._optimizer.zero_grad(set_to_none=True)
        flops = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
        return loss.item(), norm, flops

    def _masked_loss(self, tokens_BxL: torch.Tensor) -> torch.Tensor:
        objective, (_, length) = self._config.objective, tokens_BxL.shape
        count = predicted_per_row(objective.mask_rate, length)
        masked = round(objective.mask_share * count)
        replaced = round((objective.mask_share + objective.random_share) * count)
        noise_BxL = torch.rand(tokens_BxL.shape, device=tokens_BxL.device)
        positions_BxP = noise_BxL.topk(count, dim=1).indices
        targets_BxP = tokens_BxL.gather(1, positions_BxP)
        random_BxP = torch.randint_like(targets_BxP, self._config.model.vocab_size)
        order_1xP = torch.arange(count, device=tokens_BxL.device)[None]
        new_BxP = torch.where(order_1xP < replaced, random_BxP, targets_BxP)
        new_BxP = torch.where(order_1xP < masked, MASK, new_BxP)
        return self.model(
            tokens_BxL.scatter(1, positions_BxP, new_BxP), positions_BxP, targets_BxP
        )


def load(model: MaskedLM, params: Mapping[str, Any]) -> None:
    """Copies every parameter of `cramjax.model.MaskedLM`."""
    embedding = params["embedding"]
    tensors = {
        "word.weight": embedding["word"],
        "scale": embedding["positions"]["scale"],
        "table_LxD": model.table_LxD,
    }
    norms = {"embedding_norm": embedding["norm"], "final_norm": params["final_norm"]}
    for index in range(len(model.layers)):
        ours, theirs = params[f"layers_{index}"], f"layers.{index}"
        for part, name, kernels in (
            ("attention", "query_key_value", ("query", "key", "value")),
            ("attention", "attention_output", ("output",)),
            ("ffn", "gate_value", ("gate", "value")),
            ("ffn", "ffn_output", ("output",)),
        ):
            tensors[f"{theirs}.{name}.weight"] = joined(ours[part], *kernels)
        for norm in ("attention_norm", "ffn_norm"):
            norms[f"{theirs}.{norm}"] = ours[norm]
    for name, norm in norms.items():
        tensors |= {f"{name}.weight": norm["scale"], f"{name}.bias": norm["bias"]}
    model.load_state_dict({n: torch.tensor(np.asarray(x)) for n, x in tensors.items()})


def joined(ours: Mapping[str, Any], *names: str) -> np.ndarray:
    """Returns kernels as one of PyTorch's (out, in), their outputs concatenated."""
    return np.concatenate([np.asarray(ours[name]["kernel"]).T for name in names])

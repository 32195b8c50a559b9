"""The same model and training step in PyTorch: a speed to compare with, nothing else.

Written for the benchmark, as one would for speed: one kernel for query, key and value
and one for gate and value, `scaled_dot_product_attention`, the decoder at the predicted
positions only, fused AdamW where there is one, torch.compile; if the config says
bfloat16, by autocast, with a residual stream of that type, too. Axes as in
`cramjax.model.encoder`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from cramjax.config import Config, ModelConfig
from cramjax.data import tokenizer
from cramjax.model.flops import predicted_positions
from cramjax.model.variants import sinusoids


class Layer(nn.Module):
    """Norm, attention, residual; norm, gated feed-forward, residual."""

    def __init__(self, model: ModelConfig):
        """Makes the weights, without biases but in the norms."""
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
        # As in our model, <pad> learns as an answer, not where it is read.
        self.word = nn.Embedding(
            model.vocab_size, model.width, padding_idx=tokenizer.PAD
        )
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
      parameters: how many numbers are trained.
      fused: whether AdamW is the fused one.
      compiled: whether the model goes through torch.compile.
    """

    def __init__(self, config: Config, params: Mapping[str, Any], device: str):
        """Copies the weights.

        Args:
          config: one that `peer.unsupported` finds nothing in.
          params: the tree of `cramjax.model.MaskedLM`.
          device: "cuda" or "cpu".
        """
        self._config, self._device = config, device
        self._on_gpu = device == "cuda"
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[
            config.model.dtype
        ]
        self._model = MaskedLM(config.model, self._dtype)
        load(self._model, params)
        self._model.to(device)
        self.parameters = sum(p.numel() for p in self._model.parameters())
        self._optimizer, self.fused = _adamw(self._model, config)
        self.compiled = False
        self._loss = self._masked_loss
        if self._on_gpu:
            # Products of float32 as JAX's on a GPU: with 10 bits of mantissa.
            torch.set_float32_matmul_precision("high")

    def compile(self, batches: Sequence[torch.Tensor]) -> None:
        """Compiles the loss, on prepared batches.

        On a CPU that needs a C++ compiler; without one the loss stays as it is.
        """
        self._loss = torch.compile(self._masked_loss)
        try:
            self.run(batches)
            self.compiled = True
        except Exception:  # of Inductor, of many kinds
            if self._on_gpu:
                raise
            self._loss = self._masked_loss
            self.run(batches)

    def prepared(self, batches: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Returns the batches for `run`: in memory that the GPU can read by itself.

        From other memory a copy would wait for the GPU, and the GPU for the host.
        """
        tensors = [torch.from_numpy(x.astype(np.int64)) for x in batches]
        return [x.pin_memory() for x in tensors] if self._on_gpu else tensors

    def run(self, batches: Sequence[torch.Tensor], accumulate: int = 1) -> float:
        """Trains on prepared batches; returns the last loss when all work is done.

        Args:
          batches: of equal shape, a multiple of `accumulate` of them.
          accumulate: micro-batches of an update; their gradients are averaged.
        """
        loss = torch.zeros(())
        for index, tokens_BxL in enumerate(batches, 1):
            on_device = tokens_BxL.to(self._device, non_blocking=True)
            with self._autocast():
                loss = self._loss(on_device)
            (loss / accumulate).backward()
            if index % accumulate == 0:
                clip = self._config.optimizer.clip_norm
                if clip:
                    nn.utils.clip_grad_norm_(self._model.parameters(), clip)
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
        if self._on_gpu:
            torch.cuda.synchronize()
        return loss.item()

    def float32_loss_and_norm(self, *masked: np.ndarray) -> tuple[float, float, int]:
        """Returns loss, gradient norm, and FLOPs of the products with a weight.

        It takes what `MaskedLM` takes, computes in float32, without torch.compile.
        """
        inputs = [torch.from_numpy(x.astype(np.int64)).to(self._device) for x in masked]
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        self._model.dtype = torch.float32
        with FlopCounterMode(display=False) as counter:
            loss = self._model(*inputs)
            loss.backward()
        self._model.dtype = self._dtype
        torch.set_float32_matmul_precision(precision)
        norms = [p.grad.norm() for p in self._model.parameters()]
        norm = torch.stack(norms).norm().item()
        self._optimizer.zero_grad(set_to_none=True)
        flops = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
        return loss.item(), norm, flops

    def _autocast(self) -> contextlib.AbstractContextManager:
        half = self._dtype != torch.float32
        return torch.autocast(self._device, self._dtype if half else None, enabled=half)

    def _masked_loss(self, tokens_BxL: torch.Tensor) -> torch.Tensor:
        objective, (_, length) = self._config.objective, tokens_BxL.shape
        count = predicted_positions(objective.mask_rate, length)
        masked = round(objective.mask_share * count)
        replaced = round((objective.mask_share + objective.random_share) * count)
        noise_BxL = torch.rand(tokens_BxL.shape, device=tokens_BxL.device)
        positions_BxP = noise_BxL.topk(count, dim=1).indices
        targets_BxP = tokens_BxL.gather(1, positions_BxP)
        random_BxP = torch.randint_like(targets_BxP, self._config.model.vocab_size)
        order_1xP = torch.arange(count, device=tokens_BxL.device)[None]
        new_BxP = torch.where(order_1xP < replaced, random_BxP, targets_BxP)
        new_BxP = torch.where(order_1xP < masked, tokenizer.MASK, new_BxP)
        return self._model(
            tokens_BxL.scatter(1, positions_BxP, new_BxP), positions_BxP, targets_BxP
        )


def _adamw(model: nn.Module, config: Config) -> tuple[torch.optim.Optimizer, bool]:
    """Returns AdamW, which decays all but the norms, and whether it is fused."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if "norm" not in name]},
        {"params": [p for name, p in named if "norm" in name], "weight_decay": 0.0},
    ]
    of = config.optimizer
    settings = {
        "lr": of.learning_rate,
        "betas": (of.b1, of.b2),
        "eps": of.eps,
        "weight_decay": of.weight_decay,
    }
    try:
        return torch.optim.AdamW(groups, **settings, fused=True), True
    except RuntimeError:  # not for this device, in this version
        return torch.optim.AdamW(groups, **settings), False


def load(model: MaskedLM, params: Mapping[str, Any]) -> None:
    """Copies the parameters of `cramjax.model.MaskedLM`, every one of them, once."""
    tensors = {
        "word.weight": params["embedding"]["word"],
        "scale": params["embedding"]["positions"]["scale"],
        "table_LxD": model.table_LxD,
        **_norm("embedding_norm", params["embedding"]["norm"]),
        **_norm("final_norm", params["final_norm"]),
    }
    for index in range(len(model.layers)):
        ours, theirs = params[f"layers_{index}"], f"layers.{index}"
        tensors |= {
            **_norm(f"{theirs}.attention_norm", ours["attention_norm"]),
            **_norm(f"{theirs}.ffn_norm", ours["ffn_norm"]),
            f"{theirs}.query_key_value.weight": _joined(
                ours["attention"], "query", "key", "value"
            ),
            f"{theirs}.attention_output.weight": _joined(ours["attention"], "output"),
            f"{theirs}.gate_value.weight": _joined(ours["ffn"], "gate", "value"),
            f"{theirs}.ffn_output.weight": _joined(ours["ffn"], "output"),
        }
    model.load_state_dict({n: torch.tensor(np.asarray(x)) for n, x in tensors.items()})


def _norm(name: str, ours: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.weight": ours["scale"], f"{name}.bias": ours["bias"]}


def _joined(ours: Mapping[str, Any], *names: str) -> np.ndarray:
    """Returns kernels as one of torch's, (out, in), outputs one after the other."""
    return np.concatenate([np.asarray(ours[name]["kernel"]).T for name in names])

"""A model that cramjax has exported: its config, the encoder and two heads, in PyTorch.

It travels with the exported weights and needs nothing else of cramjax. The keys of the
config, the names of parameters and the axes in names of arrays are those of
cramjax/config/model.py and cramjax/model/encoder.py, which also explain the parts.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import modeling_outputs as outputs

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
ACTIVATIONS["relu_squared"] = lambda x: F.relu(x).square()
MASK = 6  # the id of <mask>, see cramjax/tokens.py


class CramjaxConfig(PreTrainedConfig):
    """The model's keys, some of them by their usual names, and the classifier's."""

    model_type = "cramjax"
    dropout = 0.0  # in training
    pooling = "cls"
    late_masks = 0


def make_norm(config, width=0):
    """Returns a layer norm or an RMS norm."""
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(width or config.hidden_size, eps=config.norm_eps)


def angles(length, width, base=10000.0):
    """Returns float64 angles_Lxhalf, of sinusoids and rotations."""
    rates = torch.arange(0, width, 2, dtype=torch.float64) / width
    return torch.arange(length)[:, None] * torch.exp(-math.log(base) * rates)


def rotate(x_BxHxLxK, base):
    """Returns queries or keys turned by their position."""
    angle_Lxhalf = angles(*x_BxHxLxK.shape[-2:], base)
    cos, sin = angle_Lxhalf.cos().to(x_BxHxLxK), angle_Lxhalf.sin().to(x_BxHxLxK)
    a, b = x_BxHxLxK.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def fourier(x_BxLxD, mask_BxM):
    """Returns the real part of the transform over channels and unmasked positions."""
    x_BxLxD = torch.fft.fft(x_BxLxD.float(), dim=2, norm="ortho")
    place_BxM, count_Bx1x1 = mask_BxM.cumsum(1) - 1, mask_BxM.sum(1)[:, None, None]
    part_BxLxM = place_BxM[:, :, None] * place_BxM[:, None] % count_Bx1x1 / count_Bx1x1
    weight_BxLxM = (mask_BxM[:, None] / count_Bx1x1.sqrt()).expand_as(part_BxLxM)
    return (torch.polar(weight_BxLxM, -math.tau * part_BxLxM) @ x_BxLxD).real


class Layer(nn.Module):
    """Attention and feed-forward, each with a norm and a residual connection."""

    def __init__(self, config, index):
        super().__init__()
        self.config, width, bias = config, config.hidden_size, config.linear_bias
        self.is_local = index % config.global_every > 0
        qkv = ("query", "key", "value") if config.mixing == "attention" else ()
        dense = {name: nn.Linear(width, width, bias=config.qkv_bias) for name in qkv}
        dense["output"] = nn.Linear(width, width, bias=bias)
        self.attention, normed = nn.ModuleDict(dense), index or config.first_norm
        self.attention_norm = make_norm(config) if normed else nn.Identity()
        if (index + 1) % config.ffn_every == 0:
            names = ("gate", "value") if config.ffn == "gated" else ("value",)
            inner = config.ffn_width // len(names)
            dense = {name: nn.Linear(width, inner, bias=bias) for name in names}
            dense["output"] = nn.Linear(inner, width, bias=bias)
            self.ffn, self.ffn_norm = nn.ModuleDict(dense), make_norm(config)

    def forward(self, x_BxLxD, mask_BxM):
        post = self.config.norm_placement == "post"
        for name, part in (("attention", self.mix), ("ffn", self.feed_forward)):
            if not hasattr(self, name):
                continue
            norm = getattr(self, f"{name}_norm")
            y_BxLxD = part(x_BxLxD if post else norm(x_BxLxD), mask_BxM)
            x_BxLxD = x_BxLxD + F.dropout(y_BxLxD, self.config.dropout, self.training)
            x_BxLxD = norm(x_BxLxD) if post else x_BxLxD
        return x_BxLxD

    def mix(self, x_BxLxD, mask_BxM):
        config, dense = self.config, self.attention
        if config.mixing == "fourier":
            return dense["output"](fourier(x_BxLxD, mask_BxM).to(x_BxLxD))
        heads = (config.num_attention_heads, -1)
        q_BxHxLxK, k_BxHxMxK, v_BxHxMxK = (
            dense[name](x_BxLxD).unflatten(-1, heads).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        if config.positions.endswith("rotary"):
            base = config.local_rotary_base if self.is_local else config.rotary_base
            q_BxHxLxK, k_BxHxMxK = rotate(q_BxHxLxK, base), rotate(k_BxHxMxK, base)
        mask_Bx1xLxM = mask_BxM[:, None, None]
        if self.is_local:
            place_L = torch.arange(x_BxLxD.shape[1], device=x_BxLxD.device)
            distance_LxM = (place_L[:, None] - place_L).abs()
            mask_Bx1xLxM = mask_Bx1xLxM & (distance_LxM <= config.local_window)
        mixed_BxHxLxK = F.scaled_dot_product_attention(
            *(q_BxHxLxK, k_BxHxMxK, v_BxHxMxK, mask_Bx1xLxM),
            dropout_p=config.dropout if self.training else 0.0,
        )
        return dense["output"](mixed_BxHxLxK.transpose(1, 2).flatten(2))

    def feed_forward(self, x_BxLxD, _):
        dense, activation = self.ffn, ACTIVATIONS[self.config.activation]
        if "gate" not in dense:
            return dense["output"](activation(dense["value"](x_BxLxD)))
        gate_BxLxF = activation(dense["gate"](x_BxLxD))
        return dense["output"](gate_BxLxF * dense["value"](x_BxLxD))


class Embedding(nn.Module):
    """Tokens, positions and segments, with their norm."""

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.embedding_width or config.hidden_size
        self.word = nn.Embedding(config.vocab_size, width, padding_idx=0)
        if config.positions.startswith("learned"):
            self.positions = nn.Embedding(config.max_position_embeddings, width)
        if config.positions.startswith("scaled"):
            self.positions = nn.ParameterDict({"weight": torch.ones(1)})
        if config.token_types:
            self.token_type = nn.Embedding(config.token_types, width)
        self.norm = make_norm(config, width) if config.embedding_norm else nn.Identity()
        if (out := config.hidden_size) != width:
            self.projection = nn.Linear(width, out, bias=config.linear_bias)

    def forward(self, tokens_BxL, types_BxL):
        config, x_BxLxE = self.config, self.word(tokens_BxL)
        if "sinusoidal" in config.positions:
            angle_Lxhalf = angles(*x_BxLxE.shape[1:])
            waves = torch.stack([angle_Lxhalf.sin(), angle_Lxhalf.cos()], dim=-1)
            scale = self.positions["weight"] if hasattr(self, "positions") else 1.0
            x_BxLxE = x_BxLxE + scale * waves.flatten(1).to(x_BxLxE)
        elif config.positions.startswith("learned"):
            x_BxLxE = x_BxLxE + self.positions.weight[: tokens_BxL.shape[1]]
        if config.token_types:
            types_BxL = tokens_BxL * 0 if types_BxL is None else types_BxL
            x_BxLxE = x_BxLxE + self.token_type(types_BxL)
        x_BxLxE = F.dropout(self.norm(x_BxLxE), config.dropout, self.training)
        return self.projection(x_BxLxE) if hasattr(self, "projection") else x_BxLxE


class CramjaxPreTrainedModel(PreTrainedModel):
    """What the three models have in common."""

    config_class = CramjaxConfig
    base_model_prefix = "model"


class CramjaxModel(CramjaxPreTrainedModel):
    """Tokens to hidden states."""

    def __init__(self, config):
        super().__init__(config)
        self.embedding = Embedding(config)
        layers = (Layer(config, i) for i in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        self.final_norm = make_norm(config) if config.final_norm else nn.Identity()
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding.word

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, **_):
        no_mask = attention_mask is None
        mask_BxM = torch.ones_like(input_ids) if no_mask else attention_mask
        mask_BxM, hidden_BxM = mask_BxM.bool(), input_ids == MASK
        x_BxLxD = entering_BxLxD = self.embedding(input_ids, token_type_ids)
        for index, layer in enumerate([*self.layers] * self.config.repeats):
            late = index >= self.config.late_masks
            if index == self.config.late_masks:
                x_BxLxD = x_BxLxD.where(~hidden_BxM[..., None], entering_BxLxD)
            x_BxLxD = layer(x_BxLxD, mask_BxM if late else mask_BxM & ~hidden_BxM)
        return outputs.BaseModelOutput(last_hidden_state=self.final_norm(x_BxLxD))


class CramjaxForMaskedLM(CramjaxPreTrainedModel):
    """Tokens to logits; the decoder is tied to the token embedding."""

    def __init__(self, config):
        super().__init__(config)
        self.model = CramjaxModel(config)
        width = config.embedding_width or config.hidden_size
        dense = nn.Linear(config.hidden_size, width, bias=config.linear_bias)
        if config.head_transform:
            norm = make_norm(config, width)
            self.transform = nn.ModuleDict({"dense": dense, "norm": norm})
        elif width != config.hidden_size:
            self.output_projection = dense
        if config.decoder_bias:
            self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    def forward(self, input_ids, labels=None, **inputs):
        config, x = self.config, self.model(input_ids, **inputs).last_hidden_state
        if config.head_transform:
            x = ACTIVATIONS[config.activation](self.transform["dense"](x))
            x = self.transform["norm"](x)
        elif hasattr(self, "output_projection"):
            x = self.output_projection(x)
        bias_V = self.decoder_bias if config.decoder_bias else None
        logits_BxLxV, loss = F.linear(x, self.model.embedding.word.weight, bias_V), None
        if labels is not None:
            loss = self.loss_function(logits_BxLxV, labels, config.vocab_size)
        return outputs.MaskedLMOutput(loss=loss, logits=logits_BxLxV)


class CramjaxForSequenceClassification(CramjaxPreTrainedModel):
    """Tokens to class logits, or to the number of a regression."""

    def __init__(self, config):
        super().__init__(config)
        self.model = CramjaxModel(config)
        self.pooler = nn.Linear(config.hidden_size, config.head_width)
        self.classifier = nn.Linear(config.head_width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, labels=None, **inputs):
        hidden_BxLxD = self.model(input_ids, **inputs).last_hidden_state
        pooled_BxD = hidden_BxLxD[:, 0]
        if self.config.pooling == "mean":
            mask_BxL = inputs.get("attention_mask")
            weight_BxLx1 = torch.ones_like(input_ids) if mask_BxL is None else mask_BxL
            weight_BxLx1 = weight_BxLx1[..., None].float()
            sum_BxD = (hidden_BxLxD.float() * weight_BxLx1).sum(1)
            pooled_BxD = (sum_BxD / weight_BxLx1.sum(1)).to(hidden_BxLxD)
        pooled_BxD = self.pooler(pooled_BxD).tanh()
        pooled_BxD = F.dropout(pooled_BxD, self.config.dropout, self.training)
        logits_BxC, loss = self.classifier(pooled_BxD), None
        if labels is not None:
            loss = self.loss_function(labels, logits_BxC, self.config)
        return outputs.SequenceClassifierOutput(loss=loss, logits=logits_BxC)

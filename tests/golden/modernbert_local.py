"""Computes modernbert_local_tiny.npz with Hugging Face's library (transformers >= 5).

python tests/golden/modernbert_local.py

Needs torch and transformers, and nothing of cramjax.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import ModernBertConfig, ModernBertModel

LENGTHS = (24, 15)  # of the two texts; the rest is padding


def main() -> None:
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,  # the first and the last attend everywhere
        num_attention_heads=2,
        max_position_embeddings=max(LENGTHS),
        local_attention=8,
        norm_bias=True,
        initializer_range=0.3,
        pad_token_id=0,
        cls_token_id=91,
        bos_token_id=91,
        sep_token_id=92,
        eos_token_id=92,
        attn_implementation="eager",
    )
    model = ModernBertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, so that they are compared
                parameter += 0.2 * torch.randn_like(parameter)
    mask_BxL = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    input_ids = torch.randint(1, 90, mask_BxL.shape) * mask_BxL
    with torch.no_grad():
        hidden = model(input_ids, attention_mask=mask_BxL.long()).last_hidden_state
    arrays = {f"params/{name}": x.numpy() for name, x in model.state_dict().items()}
    np.savez_compressed(
        Path(__file__).parent / "modernbert_local_tiny.npz",
        config=config.to_json_string(use_diff=False),
        input_ids=input_ids.numpy(),
        attention_mask=mask_BxL.numpy(),
        hidden=hidden.numpy(),
        **arrays,
    )


if __name__ == "__main__":
    main()

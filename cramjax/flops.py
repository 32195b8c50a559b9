"""Model FLOPs, for the FLOP budget and for utilisation."""

from cramjax.schema import ModelConfig


def predicted_positions(mask_rate: float, length: int) -> int:
    """Returns how many of a row's positions are predicted: P, the same in every row."""
    return round(mask_rate * length)


def train_flops_per_token(model: ModelConfig, mask_rate: float) -> float:
    """Returns FLOPs of forward and backward per token of a packed block.

    One multiply-accumulate is 2 FLOPs, the backward pass costs twice the forward one.
    Counted: the dense kernels, the two attention products, the decoder at the predicted
    positions. For crammed-bert at a rate of 0.25 this is 622.85 MFLOP.
    """
    length = model.max_length
    dense_kernels = 4 * model.width**2 + model.ffn_width * model.width * 3 // 2
    head_share = predicted_positions(mask_rate, length) / length
    return (
        6 * model.layers * dense_kernels
        + 12 * model.layers * length * model.width
        + 6 * model.width * model.vocab_size * head_share
    )

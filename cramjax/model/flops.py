"""Model FLOPs, for the FLOP budget and for utilisation."""

import math

from cramjax.config import ModelConfig


def predicted_per_row(mask_rate: float, length: int) -> int:
    """Returns how many of a row's positions are predicted: P, the same in every row."""
    return round(mask_rate * length)


def train_flops_per_token(
    model: ModelConfig, mask_rate: float, length: int | None = None
) -> float:
    """Returns FLOPs of forward and backward per token of a sequence.

    Its length is that of a packed block unless given: for crammed-bert at a rate of
    0.25 this is 622.85 MFLOP.
    """
    return sum(train_flops_by_part(model, mask_rate, length).values())


def muon_flops_per_update(model: ModelConfig) -> float:
    """Returns the FLOPs by which Muon orthogonalises its matrices in one update.

    Five steps of Newton-Schulz, each X to a X + (b A + c A A) X with A = X X^T (Jordan
    et al., 2024), for every kernel inside the layers. No other optimizer multiplies
    matrices; what is done to single numbers is not counted here, nor in the model's.
    """
    width = model.width
    half = model.ffn_width // 2 if model.ffn == "gated" else model.ffn_width
    of_ffn = 3 if model.ffn == "gated" else 2
    ffn_layers = sum(model.has_ffn(i) for i in range(model.layers))
    shapes = [(width, width)] * model.layers * (4 if model.mixing == "attention" else 1)
    shapes += [(width, half)] * of_ffn * ffn_layers
    pairs = [(min(shape), max(shape)) for shape in shapes]
    return float(sum(5 * (4 * m * m * n + 2 * m**3) for m, n in pairs))


def train_flops_by_part(
    model: ModelConfig, mask_rate: float, length: int | None = None
) -> dict[str, float]:
    """Returns FLOPs of forward and backward per token, {part: FLOPs}.

    One multiply-accumulate is 2 FLOPs, the backward pass costs twice the forward one.
    Counted: the dense kernels, the two attention products, the decoder at the positions
    it is applied to; a Fourier transform as 5 n log2 n for n numbers. Weights that are
    shared count every time they are used.
    """
    width, embedding = model.width, model.embedding_dim
    length = length or model.max_length
    layers = model.layers * model.repeats
    ffn_layers = model.repeats * sum(model.has_ffn(i) for i in range(model.layers))
    predicted = predicted_per_row(mask_rate, length) / length
    decoded = predicted if model.sparse_prediction else 1.0
    factorised = embedding != width
    attends = model.mixing == "attention"
    per_ffn = model.ffn_width * (3 / 2 if model.ffn == "gated" else 2)
    # Of the last layer, what is not computed: queries, output, feed-forward.
    saved = (1 - predicted) * model.sparse_last_layer
    ffn_layers -= saved * model.has_ffn(model.layers - 1)
    # Of the layers before the masks enter: all that is at predicted positions.
    late, kept = model.late_masks, 1 - predicted
    ffn_layers -= predicted * sum(model.has_ffn(i % model.layers) for i in range(late))
    parts = {
        "embedding projection": 6 * embedding * width * factorised,
        "attention kernels": 6
        * (layers * (4 if attends else 1) - 2 * saved - 4 * late * predicted)
        * width**2,
        "attention products": 12
        * (layers - saved - late * (1 - kept**2))
        * length
        * width
        * attends,
        # Backward is one transform more, not two: nothing in it is learned.
        "fourier transform": (
            2 * layers * 5 * width * math.log2(length * width) * (not attends)
        ),
        "feed-forward": 6 * ffn_layers * width * per_ffn,
        "head": (
            6 * width * embedding * decoded * (model.head_transform or factorised)
        ),
        "decoder": 6 * embedding * model.vocab_size * decoded,
    }
    return {part: flops for part, flops in parts.items() if flops}

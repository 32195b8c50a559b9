"""Token ids that the model, the data and the training agree on."""

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")
PAD, CLS, SEP, MASK = (
    SPECIAL_TOKENS.index(t) for t in ("<pad>", "<cls>", "<sep>", "<mask>")
)


def token_dtype(vocab_size: int) -> str:
    """Returns the type of stored tokens: 2 bytes as long as they fit, else 4."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"

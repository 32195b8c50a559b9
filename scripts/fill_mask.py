"""The likeliest tokens for <mask>, or how similar texts are to each other.

python scripts/fill_mask.py --checkpoint=DIR "the capital of france is <mask>." ...

DIR is the workdir of a finished run, or a folder with a checkpoint of Hugging Face's
BERT or ModernBERT. Texts without <mask>, two or more, are compared: the cosines of
their vectors are printed.
"""

import sys
from collections.abc import Sequence

import numpy as np

from cramjax.errors import UserError
from cramjax.flags import parse_flags
from cramjax.main import guarded


def fill(argv: Sequence[str]) -> None:
    """Prints five tokens for each mask, or the cosines."""
    given, texts = parse_flags(argv, {"checkpoint": "DIR"})
    masked = [text for text in texts if "<mask>" in text or "[MASK]" in text]
    plain = [text for text in texts if text not in masked]
    if not masked and len(plain) < 2:
        raise UserError(
            'no text with <mask>: pass one, e.g. "the capital of france is <mask>.", '
            "or two without to compare"
        )
    from cramjax.checkpoints.load import load  # imports JAX

    model = load(given["checkpoint"])
    for text in masked:
        print(text)
        for tokens in model.fill_mask(text):
            print("  " + ", ".join(f"{token} {prob:.1%}" for token, prob in tokens))
    if len(plain) < 2:
        return
    vectors_NxD = model.encode(plain)
    vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    for i, text in enumerate(plain):
        cosines = " ".join(f"{x:6.3f}" for x in vectors_NxD @ vectors_NxD[i])
        print(f"{cosines}  {text}")


if __name__ == "__main__":
    sys.exit(guarded(fill, sys.argv[1:], __doc__))

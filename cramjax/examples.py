"""What a model does with held-out sentences: it fills in words and finds neighbours."""

from pathlib import Path

import numpy as np

from cramjax import word_order
from cramjax.checkpoints.load import Pretrained, load
from cramjax.data.corpus import Corpus
from cramjax.page import Block, Heading, Table

SENTENCES, SHOWN, GUESSES = 200, 6, 3


def blocks(workdir: Path, corpus: Corpus) -> list[Block]:
    """Returns a section, or nothing for want of short held-out sentences."""
    model = load(workdir)
    # Tokenized again, a decoded sentence may be longer.
    longest = min(word_order.MAX_LENGTH, model.model.max_length) * 3 // 4
    pairs = word_order.make_pairs(corpus, longest, SENTENCES)
    decoded = (" ".join(corpus.tokenizer.decode(ids).split()) for ids, _ in pairs)
    texts = list(dict.fromkeys(decoded))
    if len(texts) < SHOWN:
        return []
    chosen = np.linspace(0, len(texts) - 1, SHOWN).astype(int)
    vectors_NxD = model.encode(texts)
    vectors_NxD -= vectors_NxD.mean(axis=0)
    vectors_NxD /= np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    cosine_NxN = vectors_NxD @ vectors_NxD.T - 2 * np.eye(len(texts))
    nearest_N = cosine_NxN.argmax(axis=1)
    neighbours = [
        [texts[i], texts[nearest_N[i]], f"{cosine_NxN[i].max():.2f}"] for i in chosen
    ]
    filled = [_fill(model, texts[i].split()) for i in chosen]
    return [
        Heading("Examples"),
        "Held-out sentences, evenly spaced. In each, the longest word that is a single "
        "token is hidden, and the model guesses it (## continues a word):",
        Table(["sentence", "hidden", "guesses, with their probabilities"], filled),
        f"For each sentence, the most similar of {len(texts)} held-out ones, by the "
        "cosine of the vectors of `encode` after subtracting their mean:",
        Table(["sentence", "nearest", "cosine"], neighbours),
    ]


def _fill(model: Pretrained, words: list[str]) -> list[str]:
    known = [
        word.isalpha()
        and len(model.tokenizer.encode(word, add_special_tokens=False)) == 1
        for word in words
    ]
    place = max(range(len(words)), key=lambda i: (known[i], len(words[i])))
    masked = [*words[:place], "<mask>", *words[place + 1 :]]
    [guesses] = model.fill_mask(" ".join(masked), GUESSES)
    masked[place] = "`<mask>`"
    found = ", ".join(f"`{token}` {100 * p:.2g} %" for token, p in guesses)
    return [" ".join(masked), words[place], found]

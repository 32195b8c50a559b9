"""MinHash: which documents share most of their text, without comparing all pairs.

Broder, "On the resemblance and containment of documents" (1997). A document is the set
of its shingles, runs of 5 words; two documents' Jaccard similarity J is the fraction of
their shingles that both have. Under a random order of all shingles, the first one of
each document's (its minimum) is the same for both with probability J.
"""

import zlib

import numpy as np

HASHES = 120  # the orders: K
SHINGLE_WORDS = 5
MIN_RECALL = 0.99  # of pairs at the threshold, before they are verified
CHUNK_SHINGLES = 512  # hashed at once: half a megabyte
_RANDOM = np.random.Generator(np.random.Philox(key=0x6D696E68617368))
_ODD_K, _MIX = (
    _RANDOM.integers(0, 1 << 63, size, np.uint64) * np.uint64(2) + np.uint64(1)
    for size in (HASHES, SHINGLE_WORDS)
)


def shingles(utf8: bytes) -> np.ndarray:
    """Returns 64-bit hashes of a document's shingles, sorted, each once.

    Words are what white space separates, in lower case (of ASCII letters). A document
    of fewer than five words is one shingle.
    """
    words = utf8.lower().split()
    words += [b""] * (SHINGLE_WORDS - len(words))
    words_W = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    count = len(words) - SHINGLE_WORDS + 1
    hashes_S = np.zeros(count, np.uint64)
    for offset, factor in enumerate(_MIX):
        hashes_S += words_W[offset : offset + count] * factor
    return np.unique(_mixed(hashes_S))


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Returns hashes every bit of which depends on all (splitmix64's last steps)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def signature(utf8: bytes) -> np.ndarray:
    """Returns mins_K, uint32: the first shingle of a document in every order."""
    hashes_S = shingles(utf8)
    mins_K = np.full(HASHES, 2**64 - 1, np.uint64)
    for start in range(0, len(hashes_S), CHUNK_SHINGLES):
        some_S = hashes_S[start : start + CHUNK_SHINGLES]
        np.minimum(mins_K, np.multiply.outer(_ODD_K, some_S).min(axis=1), out=mins_K)
    # The highest bits of a minimum are 0, the lowest ones depend on few of the hash's.
    return (mins_K >> np.uint64(16)).astype(np.uint32)


def band_rows(threshold: float) -> int:
    """Returns how many of the K minima make a band.

    Two documents are compared if all minima of some band agree. Bands are as long as
    possible while at least `MIN_RECALL` of the pairs at the threshold are found.
    """
    divisors = [n for n in range(1, HASHES) if HASHES % n == 0]
    recalls = [1 - (1 - threshold**n) ** (HASHES // n) for n in divisors]
    return max(n for n, r in zip(divisors, recalls, strict=True) if r >= MIN_RECALL)


def band_digests(mins_DxK: np.ndarray, rows: int) -> np.ndarray:
    """Returns digests_DxBx2, uint64: of the minima of each band, and its number."""
    shape = (len(mins_DxK), HASHES // rows, rows)
    mins_DxBxR = mins_DxK.reshape(shape).astype(np.uint64)
    digests_DxB = np.zeros(mins_DxBxR.shape[:2], np.uint64)
    for row in range(rows):
        digests_DxB = _mixed(digests_DxB + mins_DxBxR[:, :, row] + np.uint64(row + 1))
    numbers_DxB = np.broadcast_to(
        np.arange(digests_DxB.shape[1], dtype=np.uint64), digests_DxB.shape
    )
    return np.stack([digests_DxB, numbers_DxB], axis=2)

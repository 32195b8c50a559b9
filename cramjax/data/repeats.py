"""Which bytes of a text occurred before: a suffix array finds every repeat."""

from collections.abc import Callable

import numpy as np

from cramjax.errors import UserError

SEPARATOR = 0xFF  # after every document; never in UTF-8


def require_package(min_bytes: int) -> None:
    """Raises a `UserError` if the suffix arrays' package is not installed."""
    try:
        import pydivsufsort  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"config.data.dedup_bytes is {min_bytes}: needs the package pydivsufsort; "
            'pip install -e ".[dedup]" (or pip install pydivsufsort), or pass 0'
        ) from error


def repeated(text_N: np.ndarray, min_bytes: int) -> np.ndarray:
    """Returns what repeats earlier text, as sorted spans that do not touch.

    The spans are the union of all windows of `min_bytes` bytes, each inside one
    document, whose first occurrence ends before they begin. So the first stays whole
    where text repeats itself immediately: `min_bytes` letters of "aaaa...".

    Memory: 13 bytes per byte of text (the text, its suffix array, ranks and common
    prefixes), 22 if all of it occurs twice; from 2 GiB on nearly twice as much.

    Args:
      text_N: uint8, writable, each document followed by `SEPARATOR`.
      min_bytes: at least 1.

    Returns:
      spans_Rx2, int64: start and stop.
    """
    import pydivsufsort  # an extra

    suffixes_N = pydivsufsort.divsufsort(text_N)
    prefixes_N = pydivsufsort.kasai(text_N, suffixes_N)  # with the next suffix
    same_N = prefixes_N >= min_bytes
    del prefixes_N
    # Suffixes with the same beginning are neighbours: a group. M: those in groups.
    after_same_N = np.append(False, same_N[:-1])
    in_group_N = same_N | after_same_N
    positions_M = suffixes_N[in_group_N]
    groups_G = np.flatnonzero(~after_same_N[in_group_N])
    del suffixes_N, same_N, after_same_N, in_group_N
    if not len(positions_M):
        return np.zeros((0, 2), np.int64)
    sizes_G = np.diff(groups_G, append=len(positions_M))
    first_M = np.repeat(np.minimum.reduceat(positions_M, groups_G), sizes_G)
    positions_W = positions_M[positions_M - first_M >= min_bytes]
    del positions_M, first_M, groups_G, sizes_G
    positions_W.sort()
    separators = np.flatnonzero(text_N == SEPARATOR)
    room_W = separators[np.searchsorted(separators, positions_W)] - positions_W
    positions_W = positions_W[room_W >= min_bytes].astype(np.int64)
    # Windows that overlap or touch are one span.
    begins_W = np.diff(positions_W, prepend=-min_bytes - 1) > min_bytes
    ends_W = np.append(begins_W[1:], True)[: len(begins_W)]
    return np.stack([positions_W[begins_W], positions_W[ends_W] + min_bytes], axis=1)


def union(spans_Rx2: np.ndarray) -> np.ndarray:
    """Returns the same bytes as sorted spans that do not touch."""
    starts_R, stops_R = spans_Rx2[np.argsort(spans_Rx2[:, 0], kind="stable")].T
    stops_R = np.maximum.accumulate(stops_R)
    begins_R = np.append(True, starts_R[1:] > stops_R[:-1])[: len(starts_R)]
    ends_R = np.append(begins_R[1:], True)[: len(starts_R)]
    return np.stack([starts_R[begins_R], stops_R[ends_R]], axis=1)


def whole_characters(
    bytes_at: Callable[[np.ndarray], np.ndarray], spans_Rx2: np.ndarray
) -> np.ndarray:
    """Shrinks spans of UTF-8 until they neither begin nor end inside a character.

    Args:
      bytes_at: returns the bytes of a text at some positions.
      spans_Rx2: start and stop.
    """
    starts_R, stops_R = spans_Rx2.T.copy()
    for _ in range(3):  # a character's bytes after its first
        starts_R += bytes_at(starts_R) & 0xC0 == 0x80
        stops_R -= bytes_at(stops_R) & 0xC0 == 0x80
    return np.stack([starts_R, stops_R], axis=1)[starts_R < stops_R]

"""glibc's allocator, set for arrays that are freed and asked for again every step."""

import ctypes

# Of glibc's malloc.h: option numbers, and what they become.
_OPTIONS = (
    (-8, 1),  # M_ARENA_MAX: one heap, which can grow; the threads' own ones cannot
    (-3, 1 << 30),  # M_MMAP_THRESHOLD: below so many bytes memory is taken from it
    (-1, (1 << 31) - 1),  # M_TRIM_THRESHOLD: so many free bytes of it are kept
)


def keep_freed() -> bool:
    """Keeps freed memory in the process; returns whether the allocator knows how.

    XLA on a CPU allocates its temporaries at every step. As glibc comes, these are
    returned to the kernel, which hands out other pages, each of which it clears: a
    quarter of a training step. Call it before any thread is started. Other allocators
    are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, Windows, musl
        return False
    return all(mallopt(option, value) for option, value in _OPTIONS)

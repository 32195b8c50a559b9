"""The host's memory: its size, and the allocator that hands it out."""

import contextlib
import ctypes
import os
from importlib import metadata
from pathlib import Path

# Options of glibc's malloc.h and their values. The first one comes first because glibc
# before 2.35 refuses it: then nothing is changed.
_OPTIONS = (
    (-3, 1 << 30),  # M_MMAP_THRESHOLD: smaller allocations come from a heap
    (-8, 1),  # M_ARENA_MAX: one heap, which can grow; those of threads cannot
    (-1, (1 << 31) - 1),  # M_TRIM_THRESHOLD: free bytes that the heap keeps
)


def keep_freed() -> bool:
    """Keeps freed memory in the process; returns whether the allocator can do that.

    XLA on a CPU allocates its temporaries at every step. By default glibc returns them
    to the kernel, which clears every page it hands out again: a quarter of a training
    step. Call this before any thread is started. It changes nothing if the process
    computes on a GPU: its temporaries are elsewhere, and the threads that compile for
    it would wait for one another at the single heap.
    """
    if _computes_on_gpu():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, Windows, musl
        return False
    return all(mallopt(option, value) for option, value in _OPTIONS)


def _computes_on_gpu() -> bool:
    """Returns whether JAX will: its plugin and NVIDIA's driver are both installed."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except (OSError, TypeError):
        return False
    return bool(metadata.entry_points(group="jax_plugins"))


def limit_bytes(root: Path = Path("/")) -> int:
    """Returns the memory available to this process: the machine's or its container's.

    The folders proc/ and sys/ are those of `root`.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    groups = root / "proc/self/cgroup"
    # In version 2 "0::/group", in version 1 a line for each controller.
    lines = groups.read_text().splitlines() if groups.exists() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        first = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = first / group.lstrip("/")
        # A container may see its own group as the first one.
        for place in {folder, first, *folder.parents}:
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                found.append(int((place / name).read_text()))
    return min(found)

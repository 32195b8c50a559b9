"""Graphics cards: peak speed, memory, and what a compiler must know of them."""

import re
from typing import NamedTuple


class Architecture(NamedTuple):
    """Properties of one core (multiprocessor), by compute capability."""

    fpus: int  # float32 units
    threads: int  # resident at most
    shared_memory_kib: int  # for all thread blocks of a core together


class Card(NamedTuple):
    """A card, in its vendor's numbers."""

    title: str
    peak_tflops: float  # dense 16-bit products with float32 sums, 10^12 FLOP/s
    memory_gib: int  # in units of 2^30 bytes; the driver keeps 1 to 2 % of it
    bandwidth_gbps: float  # of its memory, 10^9 bytes per second
    cores: int  # streaming multiprocessors
    l2_mib: float  # second-level cache, 2^20 bytes
    clock_ghz: float  # boost
    compute_capability: tuple[int, int]
    nvlink_gbps: float = 0.0  # in one direction, 10^9 bytes per second; 0 = none

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return self.memory_gib << 30

    @property
    def bandwidth(self) -> float:
        """Memory bandwidth in bytes per second."""
        return self.bandwidth_gbps * 1e9

    @property
    def peak(self) -> float:
        """Peak speed in FLOP/s."""
        return self.peak_tflops * 1e12

    @property
    def architecture(self) -> Architecture:
        """Properties of its cores."""
        return ARCHITECTURES[self.compute_capability]

    @property
    def has_bfloat16(self) -> bool:
        """Whether it has bfloat16 matrix products, and cuDNN's attention."""
        return self.compute_capability >= (8, 0)


# CUDA C++ Programming Guide, tables of technical specifications and of arithmetic
# throughput by compute capability.
ARCHITECTURES = {
    (7, 5): Architecture(fpus=64, threads=1024, shared_memory_kib=64),
    (8, 0): Architecture(fpus=64, threads=2048, shared_memory_kib=164),
    (8, 6): Architecture(fpus=128, threads=1536, shared_memory_kib=100),
    (8, 9): Architecture(fpus=128, threads=1536, shared_memory_kib=100),
    (9, 0): Architecture(fpus=128, threads=2048, shared_memory_kib=228),
}

# NVIDIA's data sheets and architecture whitepapers. Where a sheet quotes products of
# sparse matrices, the peak is half of that. The first three peaks are from arXiv
# 2212.14034, table 1: the A4000's is the authors' estimate (half of its data sheet's
# is 76.7), the other two agree with the whitepapers.
CARDS = {
    # Turing whitepaper, appendix A: reference clocks.
    "rtx2080ti": Card("RTX 2080 Ti", 53.8, 11, 616, 68, 5.5, 1.545, (7, 5), 50),
    # Data sheet; clock and cache: GA104 in the GA102 whitepaper.
    "a4000": Card("RTX A4000", 88.45, 16, 448, 48, 4, 1.56, (8, 6)),
    # Data sheet; GA102 whitepaper, appendix C.
    "a6000": Card("RTX A6000", 154.8, 48, 768, 84, 6, 1.80, (8, 6), 56.25),
    # GA102 whitepaper, table 9.
    "rtx3090": Card("RTX 3090", 71.0, 24, 936, 82, 6, 1.695, (8, 6), 56.25),
    # Ada whitepaper, appendix A.
    "rtx4090": Card("RTX 4090", 165.2, 24, 1008, 128, 72, 2.52, (8, 9)),
    # A100 whitepaper, table 4; the 80 GB one's data sheet (SXM).
    "a100": Card("A100 40GB", 312.0, 40, 1555, 108, 40, 1.41, (8, 0), 300),
    "a100_80gb": Card("A100 80GB", 312.0, 80, 2039, 108, 40, 1.41, (8, 0), 300),
    # H100 whitepaper, table 2, and data sheet (SXM); the clock is the highest.
    "h100": Card("H100", 989.4, 80, 3350, 132, 50, 1.98, (9, 0), 450),
    # Data sheet (SXM): the H100's chip with more and faster memory.
    "h200": Card("H200", 989.4, 141, 4800, 132, 50, 1.98, (9, 0), 450),
}

PCIE_GBPS = 31.5  # of 16 lanes of PCIe 4.0, in one direction

# Words in a device's name that mark a different card from the one it is named after.
OTHER = re.compile(r"laptop|max|mig|nvl|pcie|d|ti|super|\d+([qc]|gb)")


def of_device(device_kind: str) -> Card | None:
    """Returns the card that JAX calls `device_kind`, None if it is not in `CARDS`.

    The name contains every word of the title: "NVIDIA A100-SXM4-80GB" is an A100 80GB.
    """
    words = set(re.split(r"[\s-]+", device_kind.lower()))
    for card in CARDS.values():
        title = set(card.title.lower().split())
        rest = words - title - {f"{card.memory_gib}gb"}
        if title <= words and not any(map(OTHER.fullmatch, rest)):
            return card
    return None

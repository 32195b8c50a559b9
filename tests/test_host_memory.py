import ctypes
import platform
import subprocess
import sys

import pytest

from cramjax.device import host_memory

# Faults in pages while blocks of a gigabyte in all are allocated, filled and freed.
PROBE = """
import resource, sys
from cramjax.device import host_memory
if sys.argv[1] == "kept":
    assert host_memory.keep_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    bytearray(1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")
def test_freed_memory_is_not_asked_of_the_kernel_again():
    assert faults("kept") < faults("as it comes") / 4


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed()

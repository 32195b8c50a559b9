import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata

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


def test_the_allocator_of_a_process_on_a_gpu_is_left_alone(monkeypatch):
    """Its compiling threads need heaps of their own."""
    set_options, plugins = [], ["cuda12"]

    class Library:
        @staticmethod
        def mallopt(option, value):
            set_options.append(option)
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    monkeypatch.setattr(metadata, "entry_points", lambda group: plugins)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert not host_memory.keep_freed()
    assert set_options == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert host_memory.keep_freed()
    assert len(set_options) == 3
    monkeypatch.delenv("JAX_PLATFORMS")
    plugins.clear()  # the driver is there, JAX has no use for it
    assert host_memory.keep_freed()


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/jobs/seven\n", {"jobs/seven/memory.max": "max", "jobs/memory.max": 9}, 9),
        ("0::/seen/outside\n", {"memory.max": 8}, 8),
        (
            "3:cpu:/jobs\n2:memory,hugetlb:/jobs\n",
            {"memory/jobs/memory.limit_in_bytes": 7, "cpu/jobs/memory.max": 1},
            7,
        ),
        ("0::/\n", {"memory.max": 10**18}, None),  # more than there is
        (None, {}, None),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, groups, limits, expected):
    if groups:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, limit in limits.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host_memory.limit_bytes(tmp_path) == (expected or machine)

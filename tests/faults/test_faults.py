"""Ten faults of a tiny run, and by hand as many as there is time for.

python scripts/faults.py --hours=2 --seed=0
"""

import harness
import pytest


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return harness.Job(tmp_path_factory.mktemp("job"))


SIGNALS = (
    ("KILL", "preparing"),
    ("TERM", "compiling"),
    ("KILL", "checkpoint"),
    ("closed pipe, INT", "training"),
    ("closed terminal", "training"),
    ("KILL", "fine-tuning"),
)
FAILED_WRITES = (
    ("EIO", "preparing"),
    ("EIO", "checkpoint"),
    ("EROFS", "training"),
    ("ENOSPC", "fine-tuning"),
)


@pytest.mark.parametrize("case", [SIGNALS, FAILED_WRITES], ids=["signals", "writes"])
def test_nothing_is_lost(job, tmp_path, case):
    if case is FAILED_WRITES and not harness.STRACE:
        pytest.skip("strace, which makes writes fail, is missing or forbidden")
    faults = [harness.Fault(*x, seed=f"{i}") for i, x in enumerate(case)]
    lines = harness.run_case(job, tmp_path / "place", faults)
    results = [line["result"] for line in lines]
    assert {*results} <= {"survived", "refused", "missed"}, lines[-1]
    # A moment is drawn: on a busy machine an attempt may be further than was expected.
    assert results.count("missed") <= 1 and len(results) >= len(case) - 1

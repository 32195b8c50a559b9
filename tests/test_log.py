"""Files that cannot be written; metrics.jsonl after a kill and on a full disk."""

import errno
import resource
from types import SimpleNamespace

import numpy as np
import pytest

from cramjax import files
from cramjax.training import log as metrics_log
from cramjax.training.log import MetricsLog


@pytest.mark.parametrize("whole", ["", '{"time": 1.0, "step": 0}\n'])
def test_a_line_that_a_kill_cut_does_not_spoil_the_next_one(tmp_path, whole):
    path = tmp_path / "metrics.jsonl"
    path.write_text(whole + '{"time": 17.5, "st')
    before = metrics_log.read(path)
    assert len(before) == whole.count("\n")
    for step in (1, 2):  # two sessions
        with MetricsLog(path) as log:
            log.write(step=step)
    lines = metrics_log.read(path)
    assert [line["step"] for line in lines] == [*(0 for _ in before), 1, 2]


def test_a_cut_log_forgets_what_will_be_measured_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 5):
            log.write(step=step, elapsed_s=10.0 * step)
    with path.open("a") as file:
        file.write('{"step": 5, "elap')  # killed here
    with MetricsLog(path) as log:
        log.cut(2, event="resumed", step=2, elapsed_s=40.0)
    assert [line["step"] for line in metrics_log.read(path)] == [1, 2, 2]


def test_lines_wait_for_room_too(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(step=1)
        file, room = log._file, [3, 0, 4, 0]

        def write(content):
            if room and not (allowed := room.pop(0)):
                raise OSError(errno.ENOSPC, "No space left on device")
            return file.write(content[:allowed] if room else content)

        log._file = SimpleNamespace(write=write, close=file.close)
        log.write(step=2)
        assert [line["step"] for line in metrics_log.read(path)] == [1]
        log.write(step=3)
        log.cut(2, event="resumed", step=2)
        log.write(step=3)
    assert [line["step"] for line in metrics_log.read(path)] == [1, 2, 2, 3]


def test_a_failed_write_names_its_file(tmp_path):
    megabytes, before = bytes(4 << 20), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*/bytes'"):
            files.write_bytes(tmp_path / "bytes", megabytes)
        with pytest.raises(OSError, match="File too large: .*/array.npy'"):
            files.save_array(tmp_path / "array.npy", np.frombuffer(megabytes))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*tmp_path.iterdir()] == []


def test_a_line_that_waits_for_room_is_written_at_the_end(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log, open("/dev/full", "ab", buffering=0) as full:
        with monkeypatch.context() as patch:
            patch.setattr(log, "_file", full)
            log.write(step=1)
        assert path.read_bytes() == b""
    assert [line["step"] for line in metrics_log.read(path)] == [1]

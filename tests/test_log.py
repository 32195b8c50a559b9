"""metrics.jsonl after a kill."""

import pytest

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

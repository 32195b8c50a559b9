"""The examples in docstrings, with a finished run where the quickstart's would be."""

import doctest
import sys

import cramjax.checkpoints.load  # noqa: F401
import cramjax.config.files  # noqa: F401


def test_the_examples_of_the_public_api(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    for name in ("cramjax", "cramjax.checkpoints.load", "cramjax.config.files"):
        result = doctest.testmod(sys.modules[name])
        assert result.attempted and not result.failed, name

"""The classroom's notebook runs, with fewer tokens than in class."""

from pathlib import Path

import pytest

NOTEBOOK = Path("docs/classroom.ipynb")
KB_AT_MOST = 120  # with its outputs


@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra classroom")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra classroom")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = notebook.cells[1]
    for tokens in ("2_000_000", "400_000"):
        assert tokens in parameters.source
        parameters.source = parameters.source.replace(tokens, "40_000")
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
    printed = str([cell.get("outputs") for cell in notebook.cells])
    assert "held-out loss" in printed and "75% hidden" in printed


def test_its_outputs_are_committed_and_small():
    assert '"output_type": "display_data"' in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < KB_AT_MOST * 1024

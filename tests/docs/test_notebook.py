"""The notebook runs from top to bottom on a CPU, on one thread, within its minute."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "tiny-model.ipynb"


def test_it_runs_from_top_to_bottom(monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"

    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()

    printed = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if "text" in o]
    assert any(text.startswith("stretched: KL") for text in printed)

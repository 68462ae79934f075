"""``docs/tutorial.ipynb`` runs from top to bottom, and says what it says in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: make test brings it")
import nbformat  # noqa: E402

PATH = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def said(notebook) -> list[str]:
    """The text of each cell: how a kernel cuts it into pieces is chance."""
    cells = [
        [output for output in cell.get("outputs", []) if output.get("name") != "stderr"] for cell in notebook.cells
    ]
    return ["".join(output.get("text") or output["data"]["text/plain"] for output in cell) for cell in cells]


def test_the_notebook_runs_and_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(PATH, as_version=4)
    before = said(notebook)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": tmp_path}}).execute()
    assert said(notebook) == before and sum(map(bool, before)) > 4
    assert (
        sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])) == 1
    )

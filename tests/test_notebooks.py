from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 5


def test_notebooks_are_stored_with_their_maps_and_stay_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 3e6
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        outputs = [output for cell in cells for output in cell.outputs]
        assert all(cell.execution_count for cell in cells), path.stem
        assert any("image/png" in output.get("data", {}) for output in outputs), path.stem
        texts = [str(output.get("text", "")) for output in outputs]
        assert not [text for text in texts if "\x1b" in text or "Traceback" in text], path.stem
        assert not [output for output in outputs if output.output_type == "error"], path.stem


@pytest.mark.filterwarnings("ignore")  # of the machinery of notebooks, not of what they run
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures

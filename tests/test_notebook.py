"""The quickstart notebook runs from beginning to end, wherever it is started, and cleans up after itself."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working, temporary, home = (tmp_path / name for name in ("working", "temporary", "home"))
    for folder in (working, temporary, home):
        folder.mkdir()
    monkeypatch.setenv("IPYTHONDIR", str(home))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(home))
    monkeypatch.setenv("TMPDIR", str(temporary))
    notebook = nbformat.read(FILE, as_version=4)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(working)}}
    ).execute()

    results = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert results[0]["text/plain"] == "0"  # the exit code of the training
    (picture,) = (base64.b64decode(data["image/png"]) for data in results if "image/png" in data)
    grid = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert grid is not None and grid.std() > 0
    (video,) = (base64.b64decode(data["image/gif"]) for data in results if "image/gif" in data)
    assert video.startswith(b"GIF8")
    assert "'mean'" in results[-1]["text/plain"]
    assert list(working.iterdir()) == []
    assert not list(temporary.glob("stormlit-*"))

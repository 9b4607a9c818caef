"""The notebooks run from beginning to end, wherever they are started, and clean up after themselves."""

from __future__ import annotations

import ast
import base64
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_notebooks_are_stored_without_outputs(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.fixture
def executed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What the notebook of that name shows, in order; nothing of it is left on the disk."""
    working, temporary, home = (tmp_path / name for name in ("working", "temporary", "home"))
    for folder in (working, temporary, home):
        folder.mkdir()
    monkeypatch.setenv("IPYTHONDIR", str(home))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(home))
    monkeypatch.setenv("TMPDIR", str(temporary))
    notebook = nbformat.read(FOLDER / request.param, as_version=4)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(working)}}
    ).execute()
    assert list(working.iterdir()) == []
    assert not list(temporary.glob("stormlit-*"))
    return [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]


@pytest.mark.slow
@pytest.mark.parametrize("executed", ["quickstart.ipynb"], indirect=True)
def test_the_quickstart_trains_plays_and_dreams(executed: list[dict[str, str]]) -> None:
    assert executed[0]["text/plain"] == "0"  # the exit code of the training
    (picture,) = (base64.b64decode(data["image/png"]) for data in executed if "image/png" in data)
    grid = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert grid is not None and grid.std() > 0
    (video,) = (base64.b64decode(data["image/gif"]) for data in executed if "image/gif" in data)
    assert video.startswith(b"GIF8")
    assert "'mean'" in executed[-1]["text/plain"]


@pytest.mark.slow
@pytest.mark.parametrize("executed", ["own_parts.ipynb"], indirect=True)
def test_parts_written_in_a_notebook_hold_their_laws_and_learn(executed: list[dict[str, str]]) -> None:
    sentences, code, losses, video = executed
    assert sentences["text/plain"] == "[]" and code["text/plain"] == "0"
    learned = ast.literal_eval(losses["text/plain"])
    assert learned["reconstruction"][-1] < 0.5 * learned["reconstruction"][0]
    assert min(learned["dyn"]) > 0
    assert base64.b64decode(video["image/gif"]).startswith(b"GIF8")


def test_a_part_in_a_notebook_is_short() -> None:
    cells = [cell.source for cell in nbformat.read(FOLDER / "own_parts.ipynb", as_version=4).cells]
    for source in (source for source in cells if source.startswith("%%writefile")):
        lines = [line for line in source.splitlines()[1:] if line and "import" not in line and '"""' not in line]
        assert len(lines) <= 20

"""Every command of the README is typed as it stands there, and every notebook runs from beginning to end."""

from __future__ import annotations

import ast
import base64
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from stormlit.cli import main
from stormlit.cli.lightning_command import FABRIC_ENTRY

README = (Path(__file__).parents[2] / "README.md").read_text()
SHORT_EPISODES = ["evaluation.episodes=1", "evaluation.baselines=[]", "env.max_episode_steps=10"]
SMALL_BUDGET = [
    *SHORT_EPISODES,
    "loop.warmup_steps=4",
    "loop.batch_size=2",
    "loop.batch_length=8",
    "imagination.batch_size=4",
    "tracking=csv",
]
BEHIND = {
    "train": [*SMALL_BUDGET, "loop.env_steps=8"],
    "resume": ["loop.env_steps=12"],
    "eval": SHORT_EPISODES,
    "dream": [],
    "demos": ["--steps", "20"],
    "bench": ["--rounds", "1"],
    "ablate": ["--dry-run"],
    "report": [],
    "scores": [],
    "diagnose": [],
    "components": [],
    "config": [],
}


def commands(program: str) -> list[list[str]]:
    """The words of every command of the README that begins with ``program``, in blocks and in tables, as they come."""
    shown = re.findall(r"```bash\n(.*?)```|\| `(.*?)` \|", README, flags=re.S)
    lines = [line for block, cell in shown for line in (block or cell).splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


@pytest.mark.slow
def test_every_stormlit_command_works_in_the_order_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("world_model: {free_bits: 0.5}\n")
    part = 'from stormlit.nn.encoders.cnn import ConvEncoder\n\n\nclass MyEncoder(ConvEncoder):\n    """Mine."""\n'
    (tmp_path / "my_parts.py").write_text(part)
    shown = commands("stormlit")
    assert {words[1] for words in shown} == set(BEHIND)
    for words in shown:
        exit_code = main([*words[1:], *BEHIND[words[1]]])
        assert exit_code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"
    assert list((tmp_path / "runs" / "mine" / "media").glob("dream-step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["fabric", "lightning"])
def test_the_launch_commands_train_on_two_processes(program: str, tmp_path: Path) -> None:
    (words,) = commands(program)
    on_cpu = ["cpu" if word == "cuda" else word for word in words]
    entry = [str(FABRIC_ENTRY) if word == "$(stormlit script)" else word for word in on_cpu]
    if program == "lightning":
        entry[entry.index("stormlit") : entry.index("stormlit")] = ["--accelerator", "cpu", "--main-port", "29517"]
    else:
        entry[2:2] = ["--main-port", "29516"]
    entry[0] = str(Path(sys.executable).with_name(program))
    budget = [*SMALL_BUDGET, "loop.env_steps=8", "replay.capacity=100"]
    done = subprocess.run([*entry, *budget], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = (tmp_path / "runs").glob("storm-Pong-s0/checkpoints/step-*")
    assert (checkpoint / "training-1.pt").is_file()


# ---- The notebooks run from beginning to end, wherever they are started, and clean up after themselves


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

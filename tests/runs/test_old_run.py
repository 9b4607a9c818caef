"""A run as 0.1.0 left it, in ``old/``: what comes later still evaluates, resumes and reports it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stormlit.cli import main
from training import logged, newest, read, status


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "old", tmp_path / "old"))


def test_a_run_of_0_1_0_evaluates_reports_and_goes_on(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its configuration has a key that is gone since; its MLflow store, media and lock are left out."""
    assert "cache: layer_inputs" in (newest(old) / "config.yaml").read_text()
    before = json.loads((old / "evaluation" / "step-000000020.json").read_text())
    assert main(["eval", str(old), "evaluation.episodes=2"]) == 0
    assert "2 episodes" in capsys.readouterr().out
    assert main(["report", str(old), "-o", str(old.parent / "report")]) == 0
    assert "| Catch | base | 1 | 0 |" in (old.parent / "report" / "report.md").read_text()
    capsys.readouterr()
    assert main(["resume", str(old), "loop.env_steps=26"]) == 0
    assert "26 environment steps: returns" in capsys.readouterr().out
    assert newest(old).name == "step-000000026" and status(old) == "FINISHED"
    state = read(newest(old) / "training-0.pt")
    assert state["replay"]["total_rows"] == 26 and state["progress"]["world_model_updates"] == 14
    assert {step for step, _ in logged(old)} == {8, 16, 20, 24, 26}
    result = json.loads((old / "result.json").read_text())
    assert [step for step, _ in result["curve"]] == [20, 26]
    assert result["curve"][0][1] == [episode["episode_return"] for episode in before["episodes"]]

"""A grid by one command: killed and continued it has the results of one that was not; what fails is tried again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stormlit.cli import main
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.result import Result, read
from stormlit.sweeps import launchers
from stormlit.sweeps.cells import Cell
from stormlit.sweeps.launchers import Launcher
from training import SMALL

VARY = "world_model.sequence_model.num_layers=1,2"
WORDS = (*SMALL, "loop.env_steps=72", "checkpoint.every=6", "evaluation.every_env_steps=30")


def command(root: Path, *words: str, seeds: str = "2", vary: str = VARY) -> list[str]:
    return ["ablate", *WORDS, *words, f"run.dir={root}", "--vary", vary, "--seeds", seeds, "--name", "grid"]


def result_of(folder: Path) -> Result:
    found = read(folder)
    assert found is not None, folder
    return found


class HereLauncher(Launcher):
    """Trains each cell in this process, one at a time; what its name is given in ``codes`` ends so instead."""

    slots, retries = 1, 2
    codes: dict[str, list[int]] = {}  # noqa: RUF012
    started: list[str] = []  # noqa: RUF012

    def __init__(self, on_gpu: bool, threads: int) -> None:
        pass

    def start(self, cell: Cell) -> int:
        self.started.append(cell.name)
        if self.codes.get(cell.name):
            cell.folder.mkdir(parents=True, exist_ok=True)
            cell.log.write_text(f"{cell.name} was unlucky\n")
            return self.codes[cell.name].pop(0)
        return main(["train", *cell.words])

    def code(self, job: int) -> int:
        return job

    def stop(self, job: int) -> None:
        raise AssertionError("it does not run any more")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HereLauncher]]:
    monkeypatch.setitem(launchers.LAUNCHERS, "here", HereLauncher)
    monkeypatch.setattr(HereLauncher, "codes", {})
    monkeypatch.setattr(HereLauncher, "started", [])
    monkeypatch.setattr("stormlit.sweeps.scheduler.POLL_SECONDS", 0.0)
    yield HereLauncher


def test_what_fails_is_tried_again_and_then_reported(
    here: type[HereLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.codes.update({"num_layers_1-Catch-s0": [3, -9], "num_layers_2-Catch-s0": [3, 3, 3]})
    words = [*command(tmp_path, "loop.env_steps=26", seeds="1"), "launcher=here"]
    assert main(words) == 3
    told = capsys.readouterr().err
    assert "num_layers_2-Catch-s0 failed with code 3; the end of" in told and "  num_layers_2-Catch-s0 was unl" in told
    assert "1 of 2 cells failed (num_layers_2-Catch-s0)" in told
    assert sorted(here.started) == ["num_layers_1-Catch-s0"] * 3 + ["num_layers_2-Catch-s0"] * 3
    # What is bad input stays bad: it is not tried again by the same command. The next command tries it once more.
    here.codes["num_layers_2-Catch-s0"] = [2]
    here.started.clear()
    assert main(words) == 3 and here.started == ["num_layers_2-Catch-s0"]
    assert main(words) == 0 and here.started == ["num_layers_2-Catch-s0"] * 2
    told = capsys.readouterr().out
    assert "Catch  num_layers_1" in told and told.count("(1 seed)") == 2
    assert json.loads((tmp_path / "grid" / "grid.json").read_text())["attempts"]["num_layers_2-Catch-s0"] == 5


def test_two_commands_do_not_run_one_grid(
    here: type[HereLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive(RunDirectory(tmp_path / "grid")):
        assert main([*command(tmp_path), "launcher=here"]) == 2
    assert "a grid of that name is running" in capsys.readouterr().err
    (tmp_path / "grid" / "run.json").write_text("{}")
    assert main([*command(tmp_path), "launcher=here"]) == 2
    assert "is a run: choose another name for the grid with --name" in capsys.readouterr().err
    assert not here.started


def test_a_cell_that_another_process_trains_is_waited_for(
    here: type[HereLauncher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has outlived a command which was killed alone."""
    left = ["num_layers_1-Catch-s0"]
    asked: list[str] = []

    def is_running(cell: Cell) -> bool:
        asked.append(cell.name)
        return cell.name in left and asked.count(cell.name) < 4

    monkeypatch.setattr(Cell, "is_running", is_running)
    assert main([*command(tmp_path, "loop.env_steps=26", seeds="1"), "launcher=here"]) == 0
    assert here.started == ["num_layers_2-Catch-s0", "num_layers_1-Catch-s0"]


@pytest.mark.slow
def test_the_grid_is_a_run_of_mlflow_and_its_cells_are_the_children(here: type[HereLauncher], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    words = [*command(tmp_path, "loop.env_steps=26", seeds="1"), "launcher=here", "tracking=mlflow"]
    words += ["tracking.notes=a trial"]
    assert main(words) == 0
    grid = tmp_path / "grid"
    client = MlflowClient(f"sqlite:///{grid / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    parent = json.loads((grid / "grid.json").read_text())["parent"]
    by_name = {run.info.run_name: run for run in runs}
    assert set(by_name) == {"grid", "num_layers_1-Catch-s0", "num_layers_2-Catch-s0"}
    assert by_name["grid"].info.run_id == parent and by_name["grid"].info.status == "FINISHED"
    assert by_name["grid"].data.tags["mlflow.note.content"] == "a trial"
    kept = {file.path for file in client.list_artifacts(parent)}
    assert {"grid.json", "report"} <= kept
    for variant in ("num_layers_1", "num_layers_2"):
        tags = by_name[f"{variant}-Catch-s0"].data.tags
        assert tags["mlflow.parentRunId"] == parent and tags["seed"] == "0" and tags["group"] == "grid"
        assert (tags["variant"], tags["environment"]) == (variant, "Catch")
    # More seeds are more children of the same parent.
    assert main([*words[: words.index("--seeds")], "--seeds", "2", *words[words.index("--seeds") + 2 :]]) == 0
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 5 and sum(run.data.tags.get("mlflow.parentRunId") == parent for run in runs) == 4

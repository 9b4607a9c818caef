"""What a run leaves in its folder, and what may be done with it: broken off, gone back, moved, named oddly, shared."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stormlit.runs.train
from stormlit.cli import main
from stormlit.config.compose import compose
from stormlit.runs.checkpoint import list_checkpoints
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.run import Run
from training import SMALL, assert_same_run, logged, newest, refusal, resume, rows, status, train

# Shorter than SMALL, with three checkpoints.
SHORT = ("loop.warmup_steps=8", "loop.env_steps=24", "checkpoint.every=8", "checkpoint.keep=5", "evaluation.episodes=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"), "run", *SHORT)


def kept(run: Path) -> dict[Path, bytes]:
    """Everything a run can go on from."""
    return {path: path.read_bytes() for part in ("checkpoints", "replay") for path in (run / part).rglob("*.*[a-z]")}


def test_going_back_drops_what_came_later_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = run / "checkpoints" / "step-000000008"
    capsys.readouterr()
    assert main(["resume", str(older), "loop.env_steps=12", "checkpoint.every=100"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "dropped" in line]
    assert len(told) == 1 and "step-000000016, step-000000024" in told[0]
    assert [folder.name for folder in list_checkpoints(RunDirectory(run))] == ["step-000000008", "step-000000012"]
    assert len(rows(run)["number"]) == 12
    assert main(["resume", str(run), "loop.env_steps=13"]) == 0
    assert "dropped" not in capsys.readouterr().err


def test_two_processes_cannot_train_the_same_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = run.parent / "new"
    with exclusive(RunDirectory(new)):
        sentence = refusal(capsys, "train", *SMALL, f"run.dir={run.parent}", "run.name=new")
        assert "run.name=new" in sentence and "another process" in sentence
    assert [path.name for path in new.iterdir()] == ["lock"]
    before = kept(run), (run / "config.yaml").read_bytes(), (run / "metrics.csv").read_bytes()
    with exclusive(RunDirectory(run)):
        for reference in (run, run / "checkpoints" / "step-000000008"):
            sentence = refusal(capsys, "resume", str(reference), "loop.env_steps=30")
            assert "run.name=run" in sentence and "another process" in sentence
    assert (kept(run), (run / "config.yaml").read_bytes(), (run / "metrics.csv").read_bytes()) == before
    assert main(["resume", str(run), "loop.env_steps=25"]) == 0  # the lock goes with its holder


@pytest.mark.slow
def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = train(tmp_path / "b", "run", *SHORT, "seed=1", "loop.env_steps=20")
    shutil.rmtree(run / "checkpoints")
    unfinished = run / "checkpoints" / ".step-000000007.tmp"  # of a step that is not saved again
    unfinished.mkdir(parents=True)
    (unfinished / "weights.pt").write_bytes(b"half")
    assert list((run / "replay" / "0").iterdir())
    begun_anew = train(tmp_path / "b", "run", *SHORT)
    assert not unfinished.exists()
    with (run / "metrics.csv").open() as file:
        places = [(row["step"], row["key"]) for row in csv.DictReader(file)]
    assert len(places) == len(set(places)) and {step for step, _ in places} == {"8", "16", "24"}
    assert main(["resume", str(begun_anew), "loop.env_steps=32"]) == 0
    unbroken = train(tmp_path / "a", "run", *SHORT, "loop.env_steps=32")
    assert len(rows(begun_anew)["number"]) == 32
    assert_same_run(unbroken, begun_anew)


def test_the_shortened_random_start_is_kept(tmp_path: Path) -> None:
    run = train(tmp_path, "run", *SHORT, "loop.env_steps=16", "loop.warmup_steps=1000")
    assert logged(run)[16, "progress/world_model_updates"] == 8
    # Of the larger budget half would be 20 steps, of which 4 are still to come.
    assert main(["resume", str(run), "loop.env_steps=40"]) == 0
    assert logged(run)[40, "progress/world_model_updates"] == 32


def test_files_and_folders_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my ((cfg.yaml").write_text("seed: 3\n")
    assert main(["train", *SMALL, *SHORT, "loop.env_steps=9", "./my ((cfg.yaml", "run.dir=a: b #1"]) == 0
    (run,) = (path for path in Path("a: b #1").iterdir() if path.is_dir())
    assert run.name == "my-cfg-Catch-s3" and compose([str(run / "config.yaml")]).run.dir == "a: b #1"
    assert main(["eval", run.name, "evaluation.episodes=1", "run.dir=a: b #1"]) == 0
    assert main(["resume", str(run), "loop.env_steps=10"]) == 0
    assert newest(run).name == "step-000000010"


def test_a_name_that_looks_like_a_number_keeps_its_text(tmp_path: Path) -> None:
    run = train(tmp_path, name := "007", *SHORT, "loop.env_steps=9")
    assert run.is_dir() and json.loads((run / "run.json").read_text())["name"] == name
    assert compose([str(run / "config.yaml")]).run.name == name
    assert compose([str(newest(run) / "config.yaml")]).run.name == name
    assert main(["resume", name, f"run.dir={tmp_path}", "loop.env_steps=10"]) == 0
    assert main(["eval", name, f"run.dir={tmp_path}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["mlflow.db-wal", "artifacts"])
def test_names_of_mlflows_own_files_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "train", *SMALL, f"run.dir={tmp_path / 'runs'}", f"run.name={name}")
    assert f"run.name={name}" in sentence and "MLflow" in sentence
    assert not (tmp_path / "runs").exists()


def test_a_moved_run_goes_on_where_it_is_now(trained: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    old = tmp_path / "old" / "run"
    moved = tmp_path / "new" / "renamed"
    shutil.copytree(trained, old)
    moved.parent.mkdir()
    shutil.move(old, moved)
    assert main(["resume", "renamed", f"run.dir={moved.parent}", "loop.env_steps=30"]) == 0
    assert newest(moved).name == "step-000000030"
    assert (moved / "evaluation" / "step-000000030.json").is_file()
    settings = compose([str(moved / "config.yaml")]).run
    assert (settings.dir, settings.name) == (str(moved.parent), "renamed")
    assert not old.exists() and [path.name for path in moved.parent.iterdir()] == ["renamed"]
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    assert np.all(np.diff(rows(moved)["number"]) == 1)


def again(root: Path, *words: str) -> list[str]:
    return ["train", *SMALL, *SHORT, "resume=auto", f"run.dir={root}", "run.name=run", *words]


def test_a_run_stopped_among_its_baselines_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluation.every_env_steps=24", "evaluation.baselines=[random]")

    def stop(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.train, "run_baselines", stop)
        assert main(again(tmp_path, *words)) == 143
    run = tmp_path / "run"
    assert status(run) == "KILLED" and list(run.glob("evaluation/step-000000024.json"))
    capsys.readouterr()
    assert main(again(tmp_path, *words)) == 0
    assert "random" in capsys.readouterr().out
    assert status(run) == "FINISHED" and (24, "eval/baseline/random") in logged(run)
    assert main(again(tmp_path, *words)) == 0
    assert "has taken all its 24 environment steps" in capsys.readouterr().out


def test_the_evaluation_of_another_future_does_not_finish_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tmp_path, "run", *SHORT)

    def killed(run: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stormlit.runs.train, "evaluate_agent", killed)
        assert main(["resume", str(run / "checkpoints" / "step-000000016"), "agent.gamma=0.5"]) == 130
    assert newest(run).name == "step-000000024" and not (run / "evaluation" / "step-000000024.json").exists()
    assert status(run) == "KILLED"
    resume(run, 24)

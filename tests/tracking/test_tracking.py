"""Trackers store every point once, continue runs, and survive a store that fails."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stormlit.errors import ConfigError
from stormlit.tracking import CsvTracker, MlflowTracker, NoneTracker, run_tags

PARAMS = {"world_model": {"encoder": {"name": "cnn", "widths": [32, 64]}, "heads": {}}, "seed": 3, "note": None}


# --- csv and none ---


def test_csv_appends_when_a_run_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tracker = CsvTracker(run_dir, tmp_path)
    run_id = tracker.start(name="pong", params=PARAMS, tags={"game": "Pong"})
    tracker.log({"a": 1.0, "b": 0.1 + 0.2}, step=10)
    tracker.finish("KILLED")
    assert json.loads((run_dir / "tags.json").read_text())["status"] == "KILLED"
    again = CsvTracker(run_dir, tmp_path)
    assert again.start(name="pong", params={"seed": 4}, tags={"device": "cpu"}, run_id=run_id) == run_id
    again.log({"a": math.nan}, step=20)
    rows = list(csv.reader((run_dir / "metrics.csv").read_text().splitlines()))  # before anything is closed
    assert str(run_dir / "metrics.csv") in again.where_to_look()[0]
    again.finish("FINISHED")
    assert rows == [["step", "key", "value"], ["10", "a", "1.0"], ["10", "b", repr(0.1 + 0.2)], ["20", "a", "nan"]]
    assert json.loads((run_dir / "params.json").read_text()) == PARAMS
    tags = json.loads((run_dir / "tags.json").read_text())
    assert tags == {"device": "cpu", "run_id": run_id, "name": "pong", "status": "FINISHED"}


def test_csv_copies_only_artifacts_from_elsewhere(tmp_path: Path) -> None:
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run_dir / "videos").mkdir(parents=True)
    elsewhere.mkdir()
    (run_dir / "videos" / "own.mp4").write_text("own")
    (elsewhere / "other.txt").write_text("other")
    tracker = CsvTracker(run_dir, tmp_path)
    tracker.start(name="pong", params={}, tags={})
    tracker.artifact(run_dir / "videos" / "own.mp4", "videos")
    tracker.artifact(elsewhere / "other.txt", "notes")
    tracker.artifact(elsewhere)
    tracker.finish("FINISHED")
    kept = {str(path.relative_to(run_dir)) for path in (run_dir / "artifacts").rglob("*") if path.is_file()}
    assert kept == {"artifacts/notes/other.txt", "artifacts/elsewhere/other.txt"}


def test_none_leaves_no_trace(tmp_path: Path) -> None:
    tracker = NoneTracker(tmp_path / "run", tmp_path)
    assert tracker.start(name="x", params={}, tags={}) != tracker.start(name="x", params={}, tags={})
    assert tracker.start(name="x", params={}, tags={}, run_id="abc") == "abc"
    tracker.log({"a": 1.0}, 1)
    tracker.finish("FINISHED")
    assert list(tmp_path.iterdir()) == []


# --- mlflow ---


def test_missing_mlflow_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install mlflow.*tracking=csv"):
        MlflowTracker(tmp_path / "run", tmp_path).start(name="x", params={}, tags={})


@pytest.mark.slow
def test_a_server_that_answers_nothing_is_asked_once(tmp_path: Path) -> None:
    """By default MLflow asks it eight times, over minutes."""
    pytest.importorskip("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[str] = []

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    asked.append(connection.recv(1 << 16).decode().partition("\r\n")[0])
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"tracking.uri={uri}: MLflow could not start a run there"):
            MlflowTracker(tmp_path / "run", tmp_path, uri=uri).start(name="x", params={}, tags={})
    assert len(asked) == 1, asked


@pytest.fixture
def new_tracker(mlflow_root: Path, request: pytest.FixtureRequest) -> Callable[..., MlflowTracker]:
    run_dir = mlflow_root / request.node.name  # one for each test, or one that leaves a backlog fails others
    return lambda **options: MlflowTracker(run_dir, mlflow_root, **options)


@pytest.fixture
def client(mlflow_root: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{mlflow_root}/mlflow.db")


@pytest.mark.slow
def test_mlflow_stores_params_tags_and_every_point(new_tracker: Callable[..., MlflowTracker], client: Any) -> None:
    many = {f"extra.p{index}": index for index in range(230)}
    tracker = new_tracker()
    run_id = tracker.start(name="pong-0", params={**PARAMS, **many}, tags={"game": "Pong"})
    for step in range(0, 12_000, 10):
        tracker.log({"loss/a": float(step), "b": -1.0}, step)
    tracker.log({"bad": math.nan}, 7)
    tracker.log({"huge": math.inf}, 7)
    tracker.finish("FAILED")
    assert run_id in tracker.where_to_look()[0] and "mlflow ui --backend-store-uri" in tracker.where_to_look()[1]
    run = client.get_run(run_id)
    assert run.info.status == "FAILED" and run.info.run_name == "pong-0"
    assert client.get_experiment(run.info.experiment_id).name == "stormlit"
    assert run.data.tags["game"] == "Pong"
    assert run.data.params == {
        "world_model.encoder.name": "cnn",
        "world_model.encoder.widths": "[32, 64]",
        "world_model.heads": "{}",
        "seed": "3",
        "note": "None",
        **{key: str(value) for key, value in many.items()},
    }
    history = client.get_metric_history(run_id, "loss/a")
    assert sorted((point.step, point.value) for point in history) == [(s, float(s)) for s in range(0, 12_000, 10)]
    assert len(client.get_metric_history(run_id, "b")) == 1200
    assert math.isnan(run.data.metrics["bad"]) and math.isnan(run.data.metrics["huge"])
    with pytest.raises(ConfigError, match="continue run 0123"):
        new_tracker().start(name="x", params={}, tags={}, run_id="0123")


@pytest.mark.slow
def test_mlflow_ignores_a_point_that_it_has(new_tracker: Callable[..., MlflowTracker], client: Any) -> None:
    """The law on which sending again rests, whatever part of a batch is known already."""
    tracker = new_tracker()
    run_id = tracker.start(name="twice", params={}, tags={})
    for step in range(300):
        tracker.log({"a": step / 3, "nan": math.nan, "inf": -math.inf}, step)
    tracker.finish("FINISHED")
    before = client.get_metric_history(run_id, "a")
    tracker._spool_of(run_id).with_suffix(".sent").unlink()
    assert new_tracker().send_backlog() == "900 metric points, the run's status"
    assert client.get_metric_history(run_id, "a") == before
    assert [len(client.get_metric_history(run_id, key)) for key in ("a", "nan", "inf")] == [300, 300, 300]


@pytest.mark.slow
def test_mlflow_system_metrics(
    new_tracker: Callable[..., MlflowTracker], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    tracker = new_tracker(system_metrics=True, experiment="another")
    run_id = tracker.start(name="pong-3", params={}, tags={})
    time.sleep(1.0)
    tracker.finish("FINISHED")
    assert "system/cpu_utilization_percentage" in client.get_run(run_id).data.metrics


# --- tags ---


def test_run_tags_name_the_code_the_device_and_the_versions() -> None:
    tags = run_tags(torch.device("cpu"))
    assert tags["device"].startswith("cpu (") and tags["version.torch"] == torch.__version__
    assert tags["version.python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"git_commit", "git_dirty"} <= tags.keys() and all(isinstance(value, str) for value in tags.values())


def test_commit_is_that_of_the_repository_that_tracks_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr("stormlit.tracking.environment_tags.__file__", str(source))

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit_and_dirty() -> tuple[str, str]:
        tags = run_tags(torch.device("cpu"))
        return tags["git_commit"], tags["git_dirty"]

    git("init")
    git("commit", "--allow-empty", "-m", "somebody else's")
    assert commit_and_dirty() == ("unknown", "unknown"), "the file is not tracked by this repository"
    git("add", "module.py")
    git("commit", "-m", "module")
    assert commit_and_dirty() == (git("rev-parse", "HEAD"), "false")
    source.write_text("x = 2\n")
    assert commit_and_dirty() == (git("rev-parse", "HEAD"), "true")


@pytest.mark.slow
def test_several_runs_may_make_the_database_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stormlit.tracking import MlflowTracker\n"
        "tracker = MlflowTracker(Path(sys.argv[1]) / 'run', Path(sys.argv[1]))\n"
        "tracker.start(name='run', params={}, tags={}); tracker.finish('FINISHED')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]

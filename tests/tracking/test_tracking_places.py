"""Where a run is recorded: stores that the environment names, folders that move, and what somebody has deleted."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_tracking_faults import wait_until

from fake_mlflow import FakeServer, install
from stormlit.errors import ConfigError
from stormlit.tracking import MlflowTracker, mlflow_tracker
from stormlit.tracking.mlflow_store import _keep_artifacts_beside, _sqlite_uri

AWKWARD = ("q/what?", "m/50%20off", "a b", "#1", "ü", "[x]*", "a@b:c", "100%")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(mlflow_tracker, "LONGEST_END", 1.0)
    server = FakeServer()
    install(monkeypatch, server)
    yield server
    server.released.set()


def start(tracker: MlflowTracker, **options: Any) -> str:
    return tracker.start(name="run", params=options.pop("params", {}), tags={}, **options)


def run_once(run_dir: Path, **options: Any) -> str:
    """Begin a run and end it; returns its id."""
    tracker = MlflowTracker(run_dir, run_dir.parent, **options)
    run_id = start(tracker)
    tracker.log({"a": 1.0}, 1)
    tracker.finish("KILLED")
    return run_id


# --- MLflow's own variables ---


def test_the_environment_names_the_store_where_the_configuration_does_not(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://of.environment")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    tracker = MlflowTracker(tmp_path / "run", tmp_path)
    run_id = start(tracker)
    tracker.finish("FINISHED")
    assert tracker.where_to_look() == [
        f"MLflow      http://of.environment  (from MLFLOW_TRACKING_URI; experiment ours from "
        f"MLFLOW_EXPERIMENT_NAME, run id {run_id})"
    ]
    run_once(tmp_path / "other", uri="http://given", experiment="theirs")
    assert server.uris == ["http://of.environment", "http://given"]
    server.down = True
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI=http://of\.environment: MLflow could not start"):
        run_once(tmp_path / "third")


def test_a_run_goes_on_where_it_began(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = run_once(tmp_path / "local")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://of.environment")
    remote = run_once(tmp_path / "remote")
    again = MlflowTracker(tmp_path / "local", tmp_path)
    start(again, run_id=local, from_step=1)
    again.finish("FINISHED")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    assert server.uris == [database, "http://of.environment", database]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI led when it began, and that is not set now"):
        start(MlflowTracker(tmp_path / "remote", tmp_path), run_id=remote, from_step=1)
    given = MlflowTracker(tmp_path / "remote", tmp_path, uri="http://moved")
    start(given, run_id=remote, from_step=1)
    given.finish("FINISHED")


def test_no_password_is_shown(server: FakeServer, tmp_path: Path) -> None:
    tracker = MlflowTracker(tmp_path / "run", tmp_path, uri="http://me:secret@host/x")
    start(tracker)
    tracker.finish("FINISHED")
    assert server.uris == ["http://me:secret@host/x"]
    assert tracker.where_to_look()[0].startswith("MLflow      http://me:***@host/x  (")


# --- what was deleted ---


def test_what_was_deleted_can_be_restored_as_the_error_says(
    server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(tmp_path / "run", tmp_path, uri="http://fake", flush_seconds=0.0)
    run_id = start(tracker)
    server.deleted.add(run_id)  # while it trains
    tracker.log({"a": 1.0}, 1)
    tracker.finish("FINISHED")
    told = f"run {run_id} has been deleted in http://fake; restore it with `MLFLOW_TRACKING_URI=http://fake "
    restore = f"mlflow runs restore --run-id {run_id}`"
    last = caplog.records[-1].message
    assert told in last and f"{restore}); send them with `stormlit sync {tmp_path}/run`" in last
    again = MlflowTracker(tmp_path / "run", tmp_path, uri="http://fake")
    for attempt in (again.send_backlog, lambda: start(again, run_id=run_id, from_step=1)):
        with pytest.raises(ConfigError) as refusal:
            attempt()
        assert str(refusal.value).startswith(told) and str(refusal.value).endswith(restore)
    server.deleted = {"stormlit"}
    for options in ({}, {"run_id": run_id, "from_step": 1}):
        with pytest.raises(ConfigError, match=r"^tracking\.experiment=stormlit has been deleted.*--experiment-id 1`"):
            start(again, **options)
    server.deleted = set()
    again.send_backlog()  # what the thread has not sent by now
    assert server.points(run_id) == [("a", 1, 1.0)]


# --- folders ---


def test_a_folder_has_one_name_however_it_is_spelt(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = MlflowTracker(Path("runs/run"), Path("runs"), uri="http://fake")
    run_id = start(first, params={"run": {"dir": "runs"}})
    first.finish("KILLED")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    shutil.copytree(tmp_path / "runs", tmp_path / "moved")
    monkeypatch.chdir("/")
    tags = server.runs[run_id].tags
    for root, moved in ((tmp_path / "runs", False), (tmp_path / "link", False), (tmp_path / "moved", True)):
        again = MlflowTracker(root / "run", root, uri="http://fake")
        start(again, run_id=run_id, from_step=0, params={"run": {"dir": str(root)}})
        again.finish("KILLED")
        assert tags == ({"resumed.run.dir": str(root)} if moved else {})


@pytest.mark.parametrize("name", AWKWARD)
def test_the_database_is_found_whatever_its_folder_is_called(name: str) -> None:
    url = pytest.importorskip("sqlalchemy").engine.make_url
    file = Path("/runs") / name / "mlflow.db"
    assert url(_sqlite_uri(file)).database == str(file)


def test_artifacts_stay_beside_a_database_that_is_moved(tmp_path: Path) -> None:
    """But not those that were never there."""
    experiments = {
        1: ("file:///old%20place/artifacts", True),
        2: ("file:///mnt/big/artifacts", False),  # somebody else's
        3: ("s3://bucket/artifacts", True),
        4: ("file:///mnt/elsewhere", True),
    }
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT)")
        database.execute("CREATE TABLE experiment_tags (experiment_id INTEGER, key TEXT, value TEXT)")
        database.execute("CREATE TABLE runs (run_uuid TEXT, experiment_id INTEGER, artifact_uri TEXT)")
        for number, (location, ours) in experiments.items():
            database.execute("INSERT INTO experiments VALUES (?, ?)", (number, location))
            database.execute("INSERT INTO runs VALUES (?, ?, ?)", (f"r{number}", number, f"{location}/r/artifacts"))
            if ours:
                tag = (number, "mlflow.experimentKind", "custom_model_development")
                database.execute("INSERT INTO experiment_tags VALUES (?, ?, ?)", tag)
        database.execute("INSERT INTO runs VALUES ('own', 1, 's3://bucket/own')")
    _keep_artifacts_beside(tmp_path / "mlflow.db")
    here = (tmp_path / "artifacts").as_uri()
    locations = {**{number: location for number, (location, _) in experiments.items()}, 1: here}
    assert dict(database.execute("SELECT * FROM experiments")) == locations
    uris = dict(database.execute("SELECT run_uuid, artifact_uri FROM runs"))
    assert uris == {**{f"r{n}": f"{place}/r/artifacts" for n, place in locations.items()}, "own": "s3://bucket/own"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_everything_stays_in_the_folder_of_all_runs_wherever_that_is_moved(tmp_path: Path) -> None:
    """With MLflow itself, in a process for each run, as it remembers where the artifacts of a run go."""
    pytest.importorskip("mlflow")
    code = (
        "import sys; from pathlib import Path; from stormlit.tracking import MlflowTracker\n"
        "run = Path(sys.argv[1]); film = run / 'film.mp4'; run.mkdir(parents=True, exist_ok=True)\n"
        "film.write_text('film'); tracker = MlflowTracker(run, run.parent)\n"
        "ids = {'run_id': sys.argv[2], 'from_step': 0} if sys.argv[2:] else {}\n"
        "print(tracker.start(name='run', params={}, tags={}, **ids)); tracker.artifact(film, f'media{len(ids)}')\n"
        "tracker.finish('FINISHED')"
    )

    def run(*words: object) -> str:
        command = [sys.executable, "-c", code, *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    first, second = tmp_path / "q" / "what? 50%20off #1 ü", tmp_path / "moved"
    begun = run(first / "one")
    first.rename(second)
    new = run(second / "two")
    assert run(second / "one", begun) == begun
    assert files(second / "artifacts") == {
        f"{begun}/artifacts/media0/film.mp4",
        f"{begun}/artifacts/media2/film.mp4",
        f"{new}/artifacts/media0/film.mp4",
    }
    assert {path.split("/")[0] for path in files(tmp_path)} == {"moved"}


@pytest.mark.slow
def test_the_commands_that_errors_give_restore_what_was_deleted(
    mlflow_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    root = Path(shutil.copytree(mlflow_root, tmp_path / "a root"))
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    tracker = MlflowTracker(root / "deleted", root, experiment="gone", flush_seconds=0.0)
    run_id = start(tracker)
    client.delete_run(run_id)
    tracker.log({"a": 1.0}, 1)
    wait_until(lambda: "has been deleted" in caplog.text)
    tracker.finish("FINISHED")
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)

    def refused(attempt: Callable[[], object]) -> None:
        with pytest.raises(ConfigError) as refusal:
            attempt()
        subprocess.run(str(refusal.value).split("`")[1], shell=True, check=True, cwd=tmp_path)

    refused(lambda: run_once(root / "new", experiment="gone"))
    run_once(root / "new", experiment="gone")
    client.delete_run(run_id)
    again = MlflowTracker(root / "deleted", root, experiment="gone")
    refused(again.send_backlog)
    assert again.send_backlog() == "1 metric points, the run's status"
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"no database" * 1000, None])
def test_a_database_that_cannot_be_opened_is_refused_at_once(content: bytes | None, tmp_path: Path) -> None:
    """By MLflow itself it would be tried for 102 s."""
    pytest.importorskip("mlflow")
    if content is None:
        (tmp_path / "mlflow.db").mkdir()
    else:
        (tmp_path / "mlflow.db").write_bytes(content)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"^tracking\.uri=sqlite:///.*MLflow could not start a run there"):
        run_once(tmp_path / "run")
    assert time.monotonic() - began < 60

"""The MLflow tracker on a server that fails: nothing blocks, nothing is lost, nothing is there twice."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import stormlit.storm.loop
from fake_mlflow import FakeServer, install
from stormlit.cli import main
from stormlit.errors import ConfigError
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.storm.training import Training
from stormlit.tracking import CsvTracker, MlflowTracker, mlflow_tracker
from training import SMALL, train

pytestmark = pytest.mark.usefixtures("server")
NewTracker = Callable[[], MlflowTracker]
PARAMS: dict[str, Any] = {"agent": {"gamma": 0.9}, "seed": 1}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    server = FakeServer()
    install(monkeypatch, server)
    yield server
    server.released.set()


@pytest.fixture
def new_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewTracker:
    monkeypatch.setattr(mlflow_tracker, "LONGEST_END", 1.0)
    return lambda: MlflowTracker(tmp_path / "run", tmp_path, uri="http://fake", flush_seconds=0.0)


def begun(new_tracker: NewTracker) -> tuple[MlflowTracker, str]:
    tracker = new_tracker()
    return tracker, tracker.start(name="x", params=PARAMS, tags={})


def resumed(
    new_tracker: NewTracker, run_id: str, from_step: int, params: dict[str, Any] = PARAMS, **tags: str
) -> MlflowTracker:
    tracker = new_tracker()
    assert tracker.start(name="x", params=params, tags=tags, run_id=run_id, from_step=from_step) == run_id
    return tracker


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- outages ---


@pytest.mark.parametrize("fault", ["hanging", "down"])
def test_no_call_waits_for_the_server(
    fault: str, new_tracker: NewTracker, server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, run_id = begun(new_tracker)
    (tmp_path / "film.mp4").write_text("film")
    setattr(server, fault, True)
    tracker.log({"a": 0.0}, 0)
    time.sleep(0.1)  # the sender is caught in its call
    answered = server.answered
    for step in range(1, 500):
        tracker.log({"a": 0.0, "b": 1.0}, step)
    tracker.artifact(tmp_path / "film.mp4")
    tracker.flush()
    tracker.finish("FINISHED")
    assert fault == "down" or server.answered == answered, "all that returned before any call of the server did"
    reason = " (server is gone)" if fault == "down" else ""
    assert caplog.records[-1].message == (
        f"999 metric points, 1 artifacts, the run's status were not sent to http://fake and are kept in "
        f"{tmp_path}/run/spool/{run_id}.spool{reason}; send them with `stormlit sync {tmp_path}/run`"
    )
    setattr(server, fault, False)
    server.released.set()
    assert new_tracker().send_backlog().endswith("metric points, 1 artifacts, the run's status")
    assert sorted(server.points(run_id)) == sorted(
        [("a", step, 0.0) for step in range(500)] + [("b", step, 1.0) for step in range(1, 500)]
    )
    run = server.runs[run_id]
    assert (run.status, run.artifacts) == ("FINISHED", [(None, "film.mp4", 4)])
    assert time.time() * 1000 - 10_000 < run.end_time < time.time() * 1000, "when it ended, not when that was told"
    assert not new_tracker().send_backlog()


def test_points_whose_answer_was_lost_are_there_once(new_tracker: NewTracker, server: FakeServer) -> None:
    tracker, run_id = begun(new_tracker)
    server.loses_answers = True
    for step in range(10):
        tracker.log({"a": float(step), "nothing": math.nan}, step)
    wait_until(lambda: server.batches)
    server.loses_answers = False
    tracker.finish("FINISHED")
    assert sum(server.batches) > 20, "some went twice"
    assert [point[:2] for point in server.points(run_id) if point[0] == "a"] == [("a", step) for step in range(10)]
    assert len(server.points(run_id)) == 20


def test_a_file_that_has_gone_is_left_out_by_name(
    new_tracker: NewTracker, server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, run_id = begun(new_tracker)
    tracker.artifact(tmp_path / "run" / "gone.mp4", "media")
    (tmp_path / "run" / "config").mkdir()
    (tmp_path / "run" / "config" / "a.yaml").write_text("a: 1")
    tracker.artifact(tmp_path / "run" / "config", "inputs")
    tracker.finish("FINISHED")
    assert f"artifact {tmp_path}/run/gone.mp4 is not there any more" in caplog.text
    assert server.runs[run_id].artifacts == [("inputs/config", "a.yaml")]


def test_names_are_made_such_that_no_batch_is_refused(new_tracker: NewTracker, server: FakeServer) -> None:
    tracker, run_id = begun(new_tracker)
    tracker.log({"/a//b!/../c/": 1.0, "": 2.0, "x" * 300: 3.0}, 0)
    tracker.finish("FINISHED")
    assert server.points(run_id) == [("a/b_/c", 0, 1.0), ("_", 0, 2.0), ("x" * 250, 0, 3.0)]


def test_values_that_are_not_finite_stay_json_and_reach_the_store_as_nan(
    new_tracker: NewTracker, server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, run_id = begun(new_tracker)
    for step in (1, 2):
        tracker.log({"up": math.inf, "down": -math.inf, "nothing": math.nan, "fine": 1.0}, step)
    tracker.finish("KILLED")
    assert [record.message for record in caplog.records] == [
        f"{key} is {value} at step 1: MLflow has no infinity, and shows such a value as NaN"
        for key, value in (("up", "inf"), ("down", "-inf"))
    ]
    # The fake server refuses infinity, of which MLflow would make 1.797e308.
    assert [key for key, _, value in server.points(run_id) if math.isnan(value)] == ["up", "down", "nothing"] * 2

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "run" / "spool" / f"{run_id}.spool").read_text().splitlines()
    entries = [json.loads(line.partition(" ")[2], parse_constant=refuse) for line in lines]
    assert entries[1]["points"] == {"up": "inf", "down": "-inf", "nothing": "nan", "fine": 1.0}
    again = resumed(new_tracker, run_id, 1)  # which knows them when they come again
    again.log({"up": math.inf, "nothing": math.nan}, 2)
    again.finish("FINISHED")
    assert len(server.points(run_id)) == 8


# --- going on ---


def log_steps(tracker: MlflowTracker | CsvTracker, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        tracker.log({"loss": step / 7 + offset, "nothing": math.nan}, step)


def killed(tracker: MlflowTracker) -> None:
    """Leave the tracker as a process that dies without a word does."""
    assert tracker._sender is not None
    tracker._sender._given_up = True
    tracker._sender.finish(0.0)


@pytest.mark.parametrize("sent", ["all sent", "part sent", "none sent"])
def test_a_resumed_run_has_each_point_once(sent: str, new_tracker: NewTracker, server: FakeServer) -> None:
    first, run_id = begun(new_tracker)
    server.down = sent == "none sent"
    log_steps(first, range(0, 50, 10))
    if not server.down:
        wait_until(lambda: len(server.points(run_id)) == 10)
    server.down = sent != "all sent"
    log_steps(first, range(50, 80, 10))
    if not server.down:
        wait_until(lambda: len(server.points(run_id)) == 16)
    killed(first)
    server.down = False
    second = resumed(new_tracker, run_id, 30, host="b")
    log_steps(second, range(40, 100, 10))
    second.log({"eval": 1.0}, 70)  # not reached before
    second.finish("FINISHED")
    steps = [step for key, step, _ in server.points(run_id) if key == "loss"]
    assert steps == list(range(0, 100, 10))
    assert [step for key, step, _ in server.points(run_id) if key == "nothing"] == steps
    assert ("eval", 70, 1.0) in server.points(run_id)
    assert server.runs[run_id].tags["host"] == "b"


def test_the_first_value_stays_unless_the_configuration_changed(new_tracker: NewTracker, server: FakeServer) -> None:
    first, run_id = begun(new_tracker)
    first.log({"loss": 1.0, "same": 2.0, "nothing": math.nan}, 20)
    killed(first)
    second = resumed(new_tracker, run_id, 10)
    second.log({"loss": 1.5, "same": 2.0, "nothing": math.nan}, 20)  # such as a measured time
    second.finish("KILLED")
    assert [point[2] for point in server.points(run_id)][:2] == [1.0, 2.0] and len(server.points(run_id)) == 3
    third = resumed(new_tracker, run_id, 10, {**PARAMS, "seed": 2})
    third.log({"loss": 1.5, "same": 2.0, "nothing": math.nan}, 20)
    third.finish("FINISHED")
    assert [point[2] for point in server.points(run_id) if point[0] == "loss"] == [1.0, 1.5]
    assert len(server.points(run_id)) == 4
    run = server.runs[run_id]
    assert (run.status, run.params["seed"], run.tags["resumed.seed"]) == ("FINISHED", "1", "2")


def test_each_configurations_values_are_kept_apart(new_tracker: NewTracker, server: FakeServer) -> None:
    """Behind the point where the second one died, the first one's values are still another future's."""
    first, run_id = begun(new_tracker)
    log_steps(first, range(0, 50, 10))
    killed(first)
    other = {**PARAMS, "seed": 2}
    for ended in (30, 60):
        tracker = resumed(new_tracker, run_id, 20, other)
        log_steps(tracker, range(30, ended + 10, 10), offset=0.5)
        killed(tracker)
    # Moved and given more steps, it is the same run: a value that differs was measured.
    moved = {**other, "run": {"dir": "/elsewhere"}, "loop": {"env_steps": 9}}
    last = resumed(new_tracker, run_id, 50, moved)
    log_steps(last, range(60, 80, 10), offset=0.7)
    last.finish("FINISHED")
    values = [(step, round(value - step / 7, 6)) for key, step, value in server.points(run_id) if key == "loss"]
    assert sorted(values) == sorted(
        [(step, 0.0) for step in range(0, 50, 10)] + [(step, 0.5) for step in range(30, 70, 10)] + [(70, 0.7)]
    )


def test_a_run_goes_on_without_the_server_and_comes_back_to_it(
    new_tracker: NewTracker, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    first, run_id = begun(new_tracker)
    server.down = True
    first.log({"loss": 1.0}, 10)
    first.finish("KILLED")
    second = resumed(new_tracker, run_id, 10, host="b")
    assert "http://fake does not answer, the run goes on and is recorded later: server is gone" in caplog.text
    second.log({"loss": 1.0}, 10)
    second.log({"loss": 2.0}, 20)
    server.down = False
    wait_until(lambda: len(server.points(run_id)) == 2)
    run = server.runs[run_id]
    assert (run.status, run.tags) == ("RUNNING", {"host": "b"}), "after the KILLED of before"
    second.finish("FINISHED")
    assert server.points(run_id) == [("loss", 10, 1.0), ("loss", 20, 2.0)] and run.status == "FINISHED"


def test_a_store_that_does_not_know_the_run_is_an_error(new_tracker: NewTracker) -> None:
    with pytest.raises(ConfigError, match=r"could not continue run abc there \(Run with id=abc not found\)"):
        resumed(new_tracker, "abc", 10)


def test_a_new_run_needs_its_store(new_tracker: NewTracker, server: FakeServer, tmp_path: Path) -> None:
    server.down = True
    with pytest.raises(ConfigError, match=r"tracking\.uri=http://fake: MLflow could not start a run there"):
        begun(new_tracker)
    assert not (tmp_path / "run" / "spool").exists()


def test_csv_becomes_the_file_of_an_unbroken_run(tmp_path: Path) -> None:
    unbroken = CsvTracker(tmp_path / "a", tmp_path)
    unbroken.start(name="x", params=PARAMS, tags={})
    log_steps(unbroken, range(0, 100, 10))
    unbroken.finish("FINISHED")
    first = CsvTracker(tmp_path / "b", tmp_path)
    run_id = first.start(name="x", params=PARAMS, tags={})
    log_steps(first, range(0, 80, 10))
    file = tmp_path / "b" / "metrics.csv"
    with file.open("a") as torn:
        torn.write("80,lo")
    second = CsvTracker(tmp_path / "b", tmp_path)
    second.start(name="x", params=PARAMS, tags={}, run_id=run_id, from_step=30)
    assert [row[0] for row in csv.reader(file.read_text().splitlines())][-1] == "30", "before anything is logged"
    log_steps(second, range(30, 100, 10))  # a run may come back to the very step it goes on from
    second.finish("FINISHED")
    assert file.read_bytes() == (tmp_path / "a" / "metrics.csv").read_bytes()


# --- the command ---


def mlflow_run(tmp_path: Path, *words: str) -> tuple[Path, str]:
    run = train(tmp_path, "run", "tracking=mlflow", "tracking.uri=http://fake", "tracking.flush_seconds=0", *words)
    return run, json.loads((run / "run.json").read_text())["run_id"]


def test_sync_sends_what_a_run_left(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "LONGEST_END", 1.0)
    create = MlflowTracker.start

    def start_and_cut(self: MlflowTracker, **options: Any) -> str:
        run_id = create(self, **options)
        server.down = True
        return run_id

    monkeypatch.setattr(MlflowTracker, "start", start_and_cut)
    run, run_id = mlflow_run(tmp_path)
    first_lines = capsys.readouterr().err
    assert "\nMLflow      http://fake  (experiment stormlit, run id run0)\n" in first_lines
    assert main(["sync", "run", f"run.dir={tmp_path}"]) == 2
    refusal = capsys.readouterr().err
    assert refusal.startswith("stormlit: error: tracking.uri=http://fake: ") and refusal.count("\n") == 1
    assert "8 artifacts, the run's status of run run0 are still to be sent (server is gone)" in refusal
    server.down = False
    with exclusive(RunDirectory(run)):
        assert main(["sync", str(run)]) == 2
    assert "another process is training that run" in capsys.readouterr().err
    assert server.points(run_id) == []
    assert main(["sync", str(run), "tracking.uri=http://fake"]) == 0
    assert capsys.readouterr().out.startswith("run: sent ")
    logged = server.points(run_id)
    assert len(logged) == len(set(logged)) > 50
    assert [step for key, step, _ in logged if key == "agent/entropy"] == [32, 40, 48]
    assert server.runs[run_id].status == "FINISHED"
    assert "checkpoints/step-000000048" in [folder for folder, *_ in server.runs[run_id].artifacts]
    assert main(["sync", "run", f"run.dir={tmp_path}"]) == 0
    assert capsys.readouterr().out == "run: nothing is left to send\n"


OLD_SPOOL = """\
d39c5418 {"begin":{"seed":"1"},"experiment":"stormlit","store":"tracking.uri"}
9971e5ce {"points":{"loss":0.5,"eval":"nan"},"step":8,"time":1700000000000}
1c5bd9c9 {"artifact":"config.yaml","folder":""}
5f04f1b9 {"points":{"loss":0.25,"eval":"inf"},"step":16,"time":1700000001000}
8061eb69 {"end":"KILLED","time":1700000002000}
"""


def test_a_spool_of_0_1_0_is_sent_from_where_it_stopped(
    new_tracker: NewTracker, server: FakeServer, tmp_path: Path
) -> None:
    begun(new_tracker)[0].finish("KILLED")  # the server has the run
    folder = tmp_path / "run" / "spool"
    (folder / "run0.spool").write_text(OLD_SPOOL)
    (folder / "run0.sent").write_text('48b39799 {"records":203,"artifacts":0}\n')  # the points of step 8 were sent
    (tmp_path / "run" / "config.yaml").write_text("seed: 1")
    assert new_tracker().send_backlog() == "2 metric points, 1 artifacts, the run's status"
    assert [point[:2] for point in server.points("run0")] == [("loss", 16), ("eval", 16)]
    assert server.runs["run0"].artifacts == [(None, "config.yaml", 7)]
    assert (server.runs["run0"].status, server.runs["run0"].end_time) == ("KILLED", 1700000002000)


def test_sync_of_a_run_with_another_tracker_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "run")
    assert main(["sync", "run", f"run.dir={tmp_path}"]) == 2
    assert f"{tmp_path}/run is tracked with tracking=csv, which leaves nothing to send" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_while_training_is_tracked_once(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind its checkpoint and resumed, it has the points of an unbroken run."""
    words = (*SMALL, "tracking=mlflow", "tracking.uri=http://fake", "loop.log_every_env_steps=2")
    assert main(["train", *words, f"run.dir={tmp_path / 'a'}", "run.name=run"]) == 0
    collect = stormlit.storm.loop.collect
    with monkeypatch.context() as patch:

        def collect_or_die(training: Training) -> None:
            collect(training) if training.progress.env_steps < 41 else 1 // 0

        patch.setattr(stormlit.storm.loop, "collect", collect_or_die)
        with pytest.raises(ZeroDivisionError):
            main(["train", *words, f"run.dir={tmp_path / 'b'}", "run.name=run"])
    assert ("replay/env_steps", 40, 40.0) in server.points("run1")
    assert main(["resume", "run", f"run.dir={tmp_path / 'b'}"]) == 0

    def timeless(run_id: str) -> list[tuple[str, int, float]]:
        return sorted(point for point in server.points(run_id) if not point[0].startswith("throughput/"))

    assert timeless("run1") == timeless("run0")
    measured = [step for key, step, _ in server.points("run1") if key.startswith("throughput/")]
    assert sorted(measured) == list(range(2, 50, 2))

"""A real ``mlflow server`` that dies, hangs and comes back while a real run trains."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import stormlit.storm.loop
from stormlit.cli import main
from stormlit.runs.directory import RunDirectory
from stormlit.storm.training import Training
from stormlit.tracking import MlflowTracker
from training import SMALL

pytestmark = pytest.mark.slow

Point = tuple[str, int, float]
STEPS = 150
WORDS = (*SMALL, "tracking=mlflow", "tracking.flush_seconds=0.2", f"loop.env_steps={STEPS}")
OFTEN = ("loop.log_every_env_steps=2", "checkpoint.every=25", "evaluation.every_env_steps=25")


class Server:
    """``mlflow server`` on a port of its own, with a SQLite database and a folder for artifacts."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = f"sqlite:///{folder}/server.db"
        self._log = folder / "server.log"
        self._command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database]
        self._command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while True:
            assert time.monotonic() < deadline and self._process.poll() is None, self._log.read_text()
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)

    def signal(self, number: signal.Signals) -> None:
        """To the server and its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("mlflow")
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def running(server: Server) -> Server:
    server.kill()
    server.start()
    return server


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """What training hands to the tracker."""
    points: list[Point] = []
    log = MlflowTracker.log

    def watched(tracker: MlflowTracker, metrics: Mapping[str, float], step: int) -> None:
        points.extend((key, step, value) for key, value in metrics.items())
        log(tracker, metrics, step)

    monkeypatch.setattr(MlflowTracker, "log", watched)
    return points


def at_steps(monkeypatch: pytest.MonkeyPatch, events: dict[int, Callable[[], None]]) -> None:
    """Do something before certain environment steps are taken."""
    collect = stormlit.storm.loop.collect

    def collect_and_more(training: Training) -> None:
        if event := events.pop(training.progress.env_steps, None):
            event()
        collect(training)

    monkeypatch.setattr(stormlit.storm.loop, "collect", collect_and_more)


def assert_there_once(server: Server, run: Path, logged: list[Point]) -> None:
    """The server's database has every point of the run, and no other."""
    from mlflow import MlflowClient

    run_id, client = str(RunDirectory(run).run_id()), MlflowClient(server.uri)
    found = client.get_run(run_id)
    stored: Counter[Point] = Counter()
    for key in found.data.metrics:
        stored.update((point.key, point.step, point.value) for point in client.get_metric_history(run_id, key))
    handed = Counter(logged)
    assert max(handed.values()) == 1 and handed.total() > 1500
    assert not handed - stored, "lost"
    assert not stored - handed, "there twice"
    assert found.info.status == "FINISHED"


def artifacts(server: Server, run: Path, folder: str) -> list[str]:
    from mlflow import MlflowClient

    return [file.path for file in MlflowClient(server.uri).list_artifacts(str(RunDirectory(run).run_id()), folder)]


@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_a_server_that_is_gone_for_the_middle_third(
    fault: str, running: Server, logged: list[Point], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hanging server answers too late what it was asked before: points whose answer is lost arrive twice."""

    def hang() -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        running.signal(signal.SIGSTOP)

    def go_on() -> None:
        time.sleep(5)  # long enough for calls to end without their answer
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        running.signal(signal.SIGCONT)

    away, back = (hang, go_on) if fault == "hanging" else (running.kill, running.start)
    events = {STEPS // 3: away, 2 * STEPS // 3: back}
    at_steps(monkeypatch, events)
    run = tmp_path / "run"
    words = [*WORDS, *OFTEN, f"run.dir={tmp_path}", "run.name=run", f"tracking.uri={running.uri}"]
    assert main(["train", *words]) == 0
    assert events == {}
    assert main(["sync", str(run)]) == 0  # a busy server may not have taken it all when the run's patience ended
    assert_there_once(running, run, logged)
    assert "evaluation/step-000000075.json" in artifacts(running, run, "evaluation")


def test_a_server_that_comes_back_after_the_end(
    running: Server,
    logged: list[Point],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_steps(monkeypatch, {STEPS // 2: running.kill})
    run = tmp_path / "run"
    words = [*WORDS, *OFTEN, f"run.dir={tmp_path}", "run.name=run", f"tracking.uri={running.uri}"]
    assert main(["train", *words]) == 0
    capsys.readouterr()
    assert main(["sync", str(run)]) == 2
    assert "are still to be sent" in capsys.readouterr().err
    running.start()
    assert main(["sync", str(run)]) == 0
    assert_there_once(running, run, logged)
    assert f"checkpoints/step-{STEPS:09d}" in artifacts(running, run, "checkpoints")
    capsys.readouterr()
    assert main(["sync", str(run)]) == 0
    assert capsys.readouterr().out == "run: nothing is left to send\n"
    # Without its position everything is sent once more, which changes nothing.
    next((run / "spool").glob("*.sent")).unlink()
    assert main(["sync", str(run)]) == 0
    assert f"sent {len(logged):,} metric points" in capsys.readouterr().out
    assert_there_once(running, run, logged)

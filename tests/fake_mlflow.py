"""Stands in for MLflow where a test needs a store that fails in a certain way: importing the real one takes seconds."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Named(NamedTuple):
    """A parameter or a tag."""

    key: str
    value: str


class MlflowError(Exception):
    def __init__(self, message: str, error_code: str) -> None:
        super().__init__(message)
        self.error_code = error_code


class FakeServer:
    """Keeps what it is sent like MLflow's database does: a point that it has already is ignored.

    down: every call fails.  hanging: every call waits until ``released``.  loses_answers: calls are carried out, but
    the client gets an error.  refuses_artifacts: only those fail.  deleted: the experiment's name and the ids of runs
    that are deleted, but can be restored.
    """

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.down = self.hanging = self.loses_answers = self.refuses_artifacts = False
        self.deleted: set[str] = set()
        self.answered = 0  # calls
        self.uris: list[str] = []  # by which clients were made for it
        self.released = threading.Event()
        self.batches: list[int] = []  # the size of every batch of points that arrived

    def points(self, run_id: str) -> list[tuple[str, int, float]]:
        """(key, step, value) of every point, in order."""
        return [(point.key, point.step, point.value) for point in self.runs[run_id].points]


class FakeClient:
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        """A call over a line with the server's faults."""
        server = self._server

        def call(*arguments: Any, **options: Any) -> Any:
            if server.hanging:
                server.released.wait(timeout=60)
                server.answered += 1
            if server.down or (server.refuses_artifacts and name.startswith("log_artifact")):
                raise ConnectionError("server is gone")
            answer = getattr(self, f"do_{name}")(*arguments, **options)
            if server.loses_answers:
                raise ConnectionError("no answer in time")
            return answer

        return call

    def _run(self, run_id: str, to_change: bool = True) -> SimpleNamespace:
        if run_id not in self._server.runs:
            raise MlflowError(f"Run with id={run_id} not found", "RESOURCE_DOES_NOT_EXIST")
        if to_change and run_id in self._server.deleted:
            raise MlflowError(f"The run {run_id} must be in the 'active' state.", "INVALID_PARAMETER_VALUE")
        return self._server.runs[run_id]

    def _stage(self, what: str) -> str:
        return "deleted" if what in self._server.deleted else "active"

    def do_get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="1", name=name, lifecycle_stage=self._stage(name))

    def do_get_experiment(self, experiment_id: str) -> SimpleNamespace:
        return self.do_get_experiment_by_name("stormlit")

    def do_create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> SimpleNamespace:
        run_id = f"run{len(self._server.runs)}"
        self._server.runs[run_id] = SimpleNamespace(
            points=[], params={}, tags=dict(tags), status="RUNNING", artifacts=[], end_time=None
        )
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def do_get_run(self, run_id: str) -> SimpleNamespace:
        info = SimpleNamespace(experiment_id="1", lifecycle_stage=self._stage(run_id))
        return SimpleNamespace(data=self._run(run_id, to_change=False), info=info)

    def do_update_run(self, run_id: str, status: str) -> None:
        self._run(run_id).status = status

    def do_log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        run = self._run(run_id)
        if metrics:
            self._server.batches.append(len(metrics))
        assert not any(math.isinf(point.value) for point in metrics), "MLflow would keep 1.797e308"
        run.points += [point for point in metrics if point not in run.points]
        run.params.update(params)
        run.tags.update(tags)

    def do_log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self._run(run_id).artifacts.append((folder, Path(path).name, Path(path).stat().st_size))

    def do_log_artifacts(self, run_id: str, path: str, folder: str) -> None:
        self._run(run_id).artifacts.append((folder, *sorted(file.name for file in Path(path).iterdir())))

    def do_set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self._run(run_id).status, self._run(run_id).end_time = status, end_time


def install(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    """Let ``import mlflow`` lead to a client of ``server``."""
    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = lambda tracking_uri: server.uris.append(tracking_uri) or FakeClient(server)  # type: ignore
    entities.Metric, entities.Param, entities.RunTag = Metric, Named, Named  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("mlflow.store", "mlflow.store.db", "mlflow.store.db.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

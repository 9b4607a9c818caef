"""The MLflow tracker: a local SQLite file by default, or a tracking server.

MLflow is imported only when a run starts: the import takes seconds, and stormlit works without the package.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stormlit.errors import ConfigError, check_option
from stormlit.registry import register
from stormlit.tracking.base import RunStatus

PARAMS_PER_BATCH = 100  # limits of MLflow's log-batch call
METRICS_PER_BATCH = 1000
MAX_BACKOFF_DOUBLINGS = 5

# Set only where the user has not. By default MLflow retries a server that is down for minutes, announces every
# database migration, and reports usage.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}

# MLflow refuses a whole batch for one name with anything else in it.
_NOT_IN_NAMES = re.compile(r"[^\w\-./ :]")

# Or MLflow's page takes the experiment for one with language models, and shows it so.
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}

_log = logging.getLogger(__name__)


@register("tracker", "mlflow")
class MlflowTracker:
    """Records a run in MLflow; once the run has started, no failure of the tracking store reaches the training.

    uri: MLflow tracking URI; None means ``sqlite:///<root>/mlflow.db`` (absolute).
    experiment: the MLflow experiment, created when missing; a database keeps its artifacts in ``<root>/artifacts``.
    flush_seconds: how long metric points are gathered before they are written together.
    system_metrics: also record the machine's load (processor, memory, disk, network, GPU) every 10 s.
    """

    def __init__(
        self,
        run_dir: Path,
        root: Path,
        *,
        uri: str | None = None,
        experiment: str = "stormlit",
        flush_seconds: float = 10.0,
        system_metrics: bool = False,
    ) -> None:
        check_option("flush_seconds", flush_seconds, 0)
        self._root = root.resolve()
        self._uri = uri or f"sqlite:///{(self._root / 'mlflow.db').as_posix()}"
        self._experiment = experiment
        self._flush_seconds = flush_seconds
        self._system_metrics = system_metrics
        self._client: Any = None
        self._monitor: Any = None
        self._run_id = ""
        self._points: list[tuple[str, float, int, int]] = []  # key, value, Unix time in ms, step
        self._failures = 0  # failed flushes in a row
        self._next_flush = 0.0

    def start(self, *, name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None) -> str:
        """See ``Tracker.start``; raises ``ConfigError`` when MLflow is not installed or its store does not answer."""
        for variable, value in _ENVIRONMENT_DEFAULTS.items():
            os.environ.setdefault(variable, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ConfigError("tracking=mlflow needs MLflow: `pip install mlflow`, or use tracking=csv") from error
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._creating_database():
                self._client = MlflowClient(tracking_uri=self._uri)
                self._run_id = self._resume(run_id, params, tags) if run_id else self._create(name, params, tags)
        # The store may fail in many ways (connection, SQL, permissions, an unknown run), all the configuration's fault.
        except Exception as error:
            raise ConfigError(
                f"tracking.uri={self._uri}: MLflow could not {'continue run ' + run_id if run_id else 'start a run'} "
                f"there ({_first_line(error)}); check that it is right and reachable, or use tracking=csv"
            ) from error
        if self._system_metrics:
            self._start_monitor(resume=run_id is not None)
        self._next_flush = time.monotonic() + self._flush_seconds
        return self._run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._points.extend((_NOT_IN_NAMES.sub("_", key), float(value), now, step) for key, value in metrics.items())
        if time.monotonic() >= self._next_flush:
            self.flush()

    def artifact(self, path: Path, folder: str = "") -> None:
        try:
            if path.is_dir():
                self._client.log_artifacts(self._run_id, str(path), str(PurePosixPath(folder, path.name)))
            else:
                self._client.log_artifact(self._run_id, str(path), folder or None)
        except Exception as error:  # whatever the store's fault, training goes on
            _log.warning("artifact %s was not stored at %s: %s", path, self._uri, _first_line(error))

    def flush(self) -> None:
        """Write the gathered points; those that could not be written are kept for the next flush.

        While the store fails, ``log`` waits longer and longer between its attempts (up to 32 times ``flush_seconds``).
        """
        from mlflow.entities import Metric

        try:
            while self._points:
                batch = self._points[:METRICS_PER_BATCH]
                self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in batch])
                del self._points[: len(batch)]
            self._failures = 0
        except Exception as error:  # whatever the store's fault, training goes on
            if self._failures == 0:
                _log.warning(
                    "metrics could not be written to %s and are kept for later: %s", self._uri, _first_line(error)
                )
            self._failures += 1
        self._next_flush = time.monotonic() + self._flush_seconds * 2 ** min(self._failures, MAX_BACKOFF_DOUBLINGS)

    def where_to_look(self) -> list[str]:
        lines = [f"MLflow      {self._uri}  (experiment {self._experiment}, run id {self._run_id})"]
        if self._uri.startswith("sqlite:"):
            mlflow = Path(sys.executable).with_name("mlflow")
            lines.append(f"to see it   {mlflow} ui --backend-store-uri {self._uri}   then open http://127.0.0.1:5000")
        return lines

    def finish(self, status: RunStatus) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        self.flush()
        if self._points:
            _log.warning("%d metric points were never written to %s", len(self._points), self._uri)
        try:
            self._client.set_terminated(self._run_id, status)
        except Exception as error:  # the training itself is done and must end cleanly
            _log.warning("run %s was not closed at %s: %s", self._run_id, self._uri, _first_line(error))

    @contextlib.contextmanager
    def _creating_database(self) -> Iterator[None]:
        """One process at a time: two that make the tables of a new SQLite file at once disturb each other."""
        with (self._root / ".mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _create(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment_id(), run_name=name, tags=dict(tags))
        flat = [Param(key, str(value)) for key, value in _flatten(params)]
        for first in range(0, len(flat), PARAMS_PER_BATCH):
            self._client.log_batch(run.info.run_id, params=flat[first : first + PARAMS_PER_BATCH])
        return str(run.info.run_id)

    def _resume(self, run_id: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        from mlflow.entities import RunTag

        before = self._client.get_run(run_id).data.params
        # Parameters may not change in MLflow: what was changed for going on is told by tags.
        changed = {f"resumed.{key}": str(value) for key, value in _flatten(params) if before.get(key) != str(value)}
        self._client.update_run(run_id, status="RUNNING")
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in {**tags, **changed}.items()])
        return run_id

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            # A server knows where its artifacts go; a bare database would put them under the working directory.
            on_server = self._uri.startswith(("http:", "https:", "databricks"))
            location = None if on_server else (self._root / "artifacts").as_uri()
            try:
                return str(
                    self._client.create_experiment(self._experiment, artifact_location=location, tags=_MODEL_TRAINING)
                )
            except Exception:  # a run started at the same moment may have created it
                experiment = self._client.get_experiment_by_name(self._experiment)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def _start_monitor(self, resume: bool) -> None:
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
        except ImportError as error:
            raise ConfigError(
                "tracking.system_metrics=true needs psutil: `pip install psutil`, or leave it false"
            ) from error
        self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=resume, tracking_uri=self._uri)
        self._monitor.start()


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their keys joined by dots; an empty mapping is a leaf."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

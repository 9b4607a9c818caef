"""The calls of MLflow: beginning, continuing and ending a run, its metrics, its files, and its database when moved.

MLflow is imported only when a store is opened: the import takes seconds, and stormlit works without the package.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import math
import os
import re
import shlex
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stormlit.errors import ConfigError, first_line
from stormlit.tracking.base import warn
from stormlit.tracking.journal import Entry

# Set only where the user has not. By default MLflow retries a server that is down for minutes, warning each time,
# announces every database migration, reports usage, and prints addresses into the output of others.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

# The tag of stormlit's experiments, or MLflow's page takes them for some with language models, and shows them so.
_MODEL_TRAINING = ("mlflow.experimentKind", "custom_model_development")


class MlflowStore:
    """One run of an MLflow store.  Methods raise what MLflow raises, and ``ConfigError`` where it is not installed.

    MLflow keeps a metric point under (run, key, step, time, value) and ignores one that it has, in a database and
    through a server alike. That is why a batch whose answer was lost can be sent again as it is.

    uri: None for the database in ``root``.  named_by: the configuration key or variable that ``uri`` is from.
    where: the URI for messages, without a password.
    """

    def __init__(
        self, uri: str | None, run_dir: Path, root: Path, run_id: str = "", named_by: str = "tracking.uri"
    ) -> None:
        self._database = root / "mlflow.db" if uri is None else None
        self.uri = uri or _sqlite_uri(root / "mlflow.db")
        self.where = re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", self.uri)
        self.named_by, self.named = named_by, f"{named_by}={self.where}"
        self.run_id = run_id
        self._on_server = self.uri.startswith(("http:", "https:", "databricks"))
        self._run_dir, self._root = run_dir, root

    @functools.cached_property
    def _client(self) -> Any:
        """MLflow's client; a new SQLite file gets its tables here."""
        for variable, value in _ENVIRONMENT_DEFAULTS.items():
            os.environ.setdefault(variable, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ConfigError("tracking=mlflow needs MLflow: `pip install mlflow`, or use tracking=csv") from error
        self._root.mkdir(parents=True, exist_ok=True)
        # One process at a time: two that make the tables of a new SQLite file at once disturb each other.
        with (self._root / ".mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._database is not None and self._database.exists():
                _keep_artifacts_beside(self._database)
            return MlflowClient(tracking_uri=self.uri)

    def create(self, experiment: str, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Begin a run.  params: flat."""
        run = self._client.create_run(self._experiment_id(experiment), run_name=name, tags=dict(tags))
        from mlflow.entities import Param

        self.run_id = str(run.info.run_id)
        self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in params.items()])

    def find(self) -> None:
        """Raises unless the store has the run; ``ConfigError`` where it has been deleted there."""
        run = self._client.get_run(self.run_id).info
        self._refuse_deleted_experiment(self._client.get_experiment(run.experiment_id))
        if run.lifecycle_stage == "deleted":
            restore = self._command("runs", "restore", "--run-id", self.run_id)
            raise ConfigError(f"run {self.run_id} has been deleted in {self.where}; restore it with `{restore}`")

    def send(self, entries: list[Entry]) -> None:
        """See ``Store.send``; raises ``ConfigError`` where the run or its experiment has been deleted."""
        first = entries[0]
        try:
            if "points" in first:
                self._log_points(entries)
            elif "artifact" in first:
                self._log_artifact(self._run_dir / first["artifact"], first["folder"])
            elif "resume" in first:
                self._resume(first["resume"], first["tags"])
            elif "end" in first:
                self._client.set_terminated(self.run_id, first["end"], end_time=first["time"])
        except Exception as error:
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                self.find()
            raise

    def _log_points(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        points = [
            # MLflow has no infinity: databases would turn it into the largest number there is.
            Metric(key, float(value) if math.isfinite(float(value)) else math.nan, entry["time"], entry["step"])
            for entry in entries
            for key, value in entry["points"].items()
        ]
        self._client.log_batch(self.run_id, metrics=points)

    def _log_artifact(self, path: Path, folder: str) -> None:
        if not os.access(path, os.R_OK):
            warn("artifact %s is not there any more, or cannot be read, and is left out", path)
        elif path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), str(PurePosixPath(folder, path.name)))
        else:
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def _resume(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        before = self._client.get_run(self.run_id).data.params
        # Parameters may not change in MLflow: what was changed for going on is told by tags.
        changed = {f"resumed.{key}": value for key, value in params.items() if before.get(key) != value}
        self._client.update_run(self.run_id, status="RUNNING")
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in {**tags, **changed}.items()])

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            # A server knows where its artifacts go; a bare database would put them under the working directory.
            place = None if self._on_server else (self._root / "artifacts").as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=place, tags=dict([_MODEL_TRAINING])))
            except Exception:  # a run started at the same moment may have created it
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        self._refuse_deleted_experiment(experiment)
        return str(experiment.experiment_id)

    def _refuse_deleted_experiment(self, experiment: Any) -> None:
        if experiment.lifecycle_stage == "deleted":
            restore = self._command("experiments", "restore", "--experiment-id", str(experiment.experiment_id))
            raise ConfigError(
                f"tracking.experiment={experiment.name} has been deleted in {self.where}; restore it with `{restore}`, "
                "or start new runs with another tracking.experiment"
            )

    def _command(self, *words: str) -> str:
        return f"MLFLOW_TRACKING_URI={shlex.quote(self.where)} {mlflow_program()} {shlex.join(words)}"


def record_load(
    log: Callable[[Mapping[str, float], int], None], uri: str, run_id: str, first_sample: int
) -> Callable[[], None]:
    """Hand processor, memory, disk, network and GPU load to ``log`` every 10 s, numbered from ``first_sample`` on, in a
    thread; returns what ends that.

    MLflow's own monitors measure it; the thread that it has for them would talk to the store itself, and give up for
    good the first time that fails. MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the 10 s.
    Raises ``ConfigError`` when psutil is missing.
    """
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    except ImportError as error:
        raise ConfigError(
            "tracking.system_metrics=true needs psutil: `pip install psutil`, or leave it false"
        ) from error
    monitor, end = SystemMetricsMonitor(run_id, tracking_uri=uri), threading.Event()

    def record() -> None:
        try:
            monitor.collect_metrics()  # rates are counted from here
            for sample in itertools.count(first_sample):
                if end.wait(monitor.sampling_interval):
                    return
                monitor.collect_metrics()
                log({f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}, sample)
                for part in monitor.monitors:
                    part.clear_metrics()
        except Exception as error:  # a driver that fails is no reason to stop training
            warn("the machine's load is no longer recorded: %s", first_line(error))

    def stop() -> None:
        end.set()
        thread.join(timeout=1.0)

    thread = threading.Thread(target=record, name="stormlit-machine-load", daemon=True)
    thread.start()
    return stop


def mlflow_program() -> str:
    """The ``mlflow`` that belongs to this Python, for a shell."""
    return shlex.quote(str(Path(sys.executable).with_name("mlflow")))


def _sqlite_uri(file: Path) -> str:
    """The URI by which MLflow finds the SQLite file; only newer versions of SQLAlchemy decode what is in it."""
    if not {"%", "?"} & set(str(file)):
        return f"sqlite:///{file}"
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(file)).render_as_string()


def _keep_artifacts_beside(database: Path) -> None:
    """Make experiments whose artifacts were beside the database, before both were moved, keep them there again.

    MLflow writes down absolute paths, and would make the old folder anew. Experiments that were not made by stormlit,
    or with a place of their own, are left as they are.
    """
    here = (database.parent / "artifacts").as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
            return  # a process died before it had made the tables
        moved = connection.execute(
            "SELECT artifact_location || '/', ? || '/', experiment_id FROM experiments "
            "JOIN experiment_tags USING (experiment_id) WHERE key = ? AND value = ? "
            "AND artifact_location LIKE 'file:%/artifacts' AND artifact_location <> ?",
            (here, *_MODEL_TRAINING, here),
        ).fetchall()
        connection.executemany(
            "UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?) WHERE experiment_id = ?", moved
        )
        connection.executemany(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
            [(here, experiment) for *_, experiment in moved],
        )

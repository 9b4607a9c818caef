"""The calls of MLflow: beginning, continuing and ending a run, its metrics and its files.

MLflow is imported only when a store is opened: the import takes seconds, and stormlit works without the package.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stormlit.errors import ConfigError
from stormlit.tracking.sender import POINTS_PER_BATCH
from stormlit.tracking.spool import Entry

PARAMS_PER_BATCH = 100  # MLflow's limit

# Set only where the user has not. By default MLflow retries a server that is down for minutes, warning each time,
# announces every database migration, reports usage, and prints addresses into the output of others.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

# Or MLflow's page takes the experiment for one with language models, and shows it so.
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}

# MLflow's codes for a store that may be right and is only out of reach.
_OUT_OF_REACH = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")

_log = logging.getLogger(__name__)


class MlflowStore:
    """One run of an MLflow store.  Every method but ``open`` raises what MLflow raises.

    MLflow keeps a metric point under (run, key, step, time, value) and ignores one that it has, in a database and
    behind a server alike. That is why a batch whose answer was lost can be sent again as it is.
    """

    def __init__(self, uri: str, run_dir: Path, root: Path, run_id: str = "") -> None:
        self.where = uri
        self.run_id = run_id
        self._run_dir, self._root = run_dir, root
        self._client: Any = None

    def open(self) -> None:
        """Make the client, and the tables of a new SQLite file; raises ``ConfigError`` where MLflow is missing."""
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
            self._client = MlflowClient(tracking_uri=self.where)

    def create(self, experiment: str, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Begin a run and return its id.  params: flat."""
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment_id(experiment), run_name=name, tags=dict(tags))
        self.run_id = str(run.info.run_id)
        flat = [Param(key, value) for key, value in params.items()]
        for first in range(0, len(flat), PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=flat[first : first + PARAMS_PER_BATCH])
        return self.run_id

    def find(self) -> None:
        """Raises unless the store has the run."""
        self._client.get_run(self.run_id)

    def send(self, entries: list[Entry]) -> None:
        """See ``Store.send``."""
        first = entries[0]
        if "points" in first:
            self._log_points(entries)
        elif "artifact" in first:
            self._log_artifact(self._run_dir / first["artifact"], first["folder"])
        elif "resume" in first:
            self._resume(first["resume"], first["tags"])
        elif "end" in first:
            self._client.set_terminated(self.run_id, first["end"], end_time=first["time"])

    def _log_points(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(key, value, entry["time"], entry["step"])
            for entry in entries
            for key, value in entry["points"].items()
        ]
        for first in range(0, len(points), POINTS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=points[first : first + POINTS_PER_BATCH])

    def _log_artifact(self, path: Path, folder: str) -> None:
        if not os.access(path, os.R_OK):
            _log.warning("artifact %s is not there any more, or cannot be read, and is left out", path)
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
            on_server = self.where.startswith(("http:", "https:", "databricks"))
            location = None if on_server else (self._root / "artifacts").as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=location, tags=_MODEL_TRAINING))
            except Exception:  # a run started at the same moment may have created it
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)


def out_of_reach(error: Exception) -> bool:
    """Whether an error of ``MlflowStore`` may pass by itself, rather than being the configuration's fault."""
    return isinstance(error, OSError) or getattr(error, "error_code", None) in _OUT_OF_REACH

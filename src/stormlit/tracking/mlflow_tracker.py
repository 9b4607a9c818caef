"""The MLflow tracker: a local SQLite file by default, or a tracking server that may die."""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from stormlit.errors import ConfigError
from stormlit.registry import Option, leaves, register
from stormlit.tracking.base import RunStatus
from stormlit.tracking.machine_load import MachineLoad
from stormlit.tracking.mlflow_store import MlflowStore, out_of_reach
from stormlit.tracking.sender import Sender, first_line, send_all
from stormlit.tracking.spool import Backlog, Spool

LONGEST_NAME = 250  # MLflow's limit

# Where a run is, how long it is, and who watches it changes no value that it logs.
CHANGES_NO_VALUE = ("resume", "run.", "loop.env_steps", "checkpoint.", "tracking.")

# MLflow refuses a whole batch for one name with anything else in it.
_NOT_IN_NAMES = re.compile(r"[^\w\-./ :]")

_log = logging.getLogger(__name__)


@register("tracker", "mlflow")
class MlflowTracker:
    """Records a run in MLflow; once the run has started, no failure of the tracking store reaches the training.

    Everything is written to a spool in ``<run_dir>/spool`` first, and brought to the store by a thread: a store that is
    down or slow keeps nobody waiting, and what it could not take is sent when it is back, when the run is resumed, or
    by ``stormlit sync``. What is logged is in the store once in the end.

    A run that is resumed logs the steps behind its checkpoint again. A metric that the spool has at such a step is not
    recorded twice: the first value stays, and the second would be the same but for measured times. If the run goes on
    with another configuration, which makes another future, a value that differs is recorded beside the first.

    A database keeps its artifacts in ``<root>/artifacts``.
    """

    def __init__(
        self,
        run_dir: Path,
        root: Path,
        *,
        uri: Annotated[str | None, Option("MLflow tracking URI; null: sqlite:///<run.dir>/mlflow.db")] = None,
        experiment: Annotated[str, Option("MLflow experiment, created when missing")] = "stormlit",
        flush_seconds: Annotated[float, Option("how long points are gathered before they are sent", low=0)] = 10.0,
        system_metrics: Annotated[bool, Option("also record the machine's load, every 10 s")] = False,
    ) -> None:
        self._run_dir = run_dir.resolve()
        self._root = root.resolve()
        self._uri = uri or f"sqlite:///{(self._root / 'mlflow.db').as_posix()}"
        self._experiment = experiment
        self._flush_seconds = flush_seconds
        self._system_metrics = system_metrics
        self._run_id = ""
        self._spool: Spool | None = None
        self._sender: Sender | None = None
        self._load: MachineLoad | None = None
        # Before a resume, at the steps that come again: the value, and under which configuration it was logged.
        self._logged: dict[tuple[str, int], tuple[float, int]] = {}
        self._future = 0  # how often the configuration has changed

    def start(
        self,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        from_step: int | None = None,
    ) -> str:
        """See ``Tracker.start``; raises ``ConfigError`` when MLflow is not installed or its store does not answer.

        A run goes on without an answer; only a store that answers that it does not have the run is an error then.
        """
        flat = {key: str(value) for key, value in leaves(params)}
        store = MlflowStore(self._uri, self._run_dir, self._root, run_id or "")
        try:
            store.open()
            if run_id is None:
                self._run_id = store.create(self._experiment, name, flat, tags)
            else:
                self._run_id = run_id
                store.find()
        except ConfigError:
            raise
        # The store may fail in many ways (connection, SQL, permissions, an unknown run), all the configuration's fault.
        except Exception as error:
            if run_id is None or not out_of_reach(error):
                what = "start a run" if run_id is None else f"continue run {run_id}"
                raise ConfigError(
                    f"tracking.uri={self._uri}: MLflow could not {what} there ({first_line(error)}); "
                    "check that it is right and reachable, or use tracking=csv"
                ) from error
            _log.warning("%s does not answer, the run goes on and is recorded later: %s", self._uri, first_line(error))
        self._spool = Spool(self._spool_folder / f"{self._run_id}.spool")
        first_sample = 0
        if run_id is None:
            self._spool.append({"begin": flat})
        else:
            first_sample = self._remember(flat, from_step)
            self._spool.append({"resume": flat, "tags": dict(tags)})
        if self._system_metrics:
            self._load = MachineLoad(self.log, self._uri, self._run_id, first_sample)
        self._sender = Sender(self._spool, store, self._flush_seconds)
        return self._run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        points = {_name(key): float(value) for key, value in metrics.items()}
        points = {key: value for key, value in points.items() if not self._is_repeated(key, step, value)}
        if points:
            self._started().append({"points": points, "step": int(step), "time": _now()})

    def artifact(self, path: Path, folder: str = "") -> None:
        """See ``Tracker.artifact``; the file is read when it is sent, and must stay till then."""
        path = path.resolve()
        if path.is_relative_to(self._run_dir):  # found again when the run has been moved
            path = path.relative_to(self._run_dir)
        self._started().append({"artifact": str(path), "folder": folder})

    def flush(self) -> None:
        """Make the disk hold everything logged so far. The store gets it when it can."""
        self._started().sync()

    def where_to_look(self) -> list[str]:
        lines = [f"MLflow      {self._uri}  (experiment {self._experiment}, run id {self._run_id})"]
        if self._uri.startswith("sqlite:"):
            mlflow = Path(sys.executable).with_name("mlflow")
            lines.append(f"to see it   {mlflow} ui --backend-store-uri {self._uri}   then open http://127.0.0.1:5000")
        return lines

    def finish(self, status: RunStatus) -> None:
        """Send the rest and close the run. A store that does not answer is waited for during a few seconds only."""
        spool = self._started()
        if self._load is not None:
            self._load.stop()
        spool.append({"end": status, "time": _now()})
        spool.sync()
        if self._sender is not None:
            # A run that is stopped from outside may have little time left.
            if not self._sender.drain(at_most=30.0 if status == "FINISHED" else 10.0):
                _log.warning(
                    "%s were not sent to %s and are kept in %s; send them with `stormlit sync %s`",
                    spool.backlog(),
                    self._uri,
                    spool.path,
                    self._run_dir,
                )
            self._sender.stop()
        spool.close()

    def send_backlog(self) -> Backlog:
        """Send what the runs of this folder could not, without starting anything; returns how much that was.

        Raises ``ConfigError`` when the store does not take it. No other process may be recording the run.
        """
        sent = Backlog()
        for path in sorted(self._spool_folder.glob("*.spool")):
            spool = Spool(path)
            try:
                if not spool.all_sent():
                    store = MlflowStore(self._uri, self._run_dir, self._root, path.stem)
                    store.open()
                    send_all(spool, store, sent)
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"tracking.uri={self._uri}: {spool.backlog()} of run {path.stem} are still to be sent "
                    f"({first_line(error)}); check that it is right and reachable (sent before that: {sent})"
                ) from error
            finally:
                spool.close()
        return sent

    @property
    def _spool_folder(self) -> Path:
        return self._run_dir / "spool"

    def _remember(self, params: Mapping[str, str], from_step: int | None) -> int:
        """Read from the spool what was logged at steps that come again, and with which parameters.

        Returns the number of the next sample of the machine's load.
        """
        before: Mapping[str, str] = {}
        next_sample = future = 0
        for entry in self._started().entries():
            now: Mapping[str, str] = entry.get("begin") or entry.get("resume") or before
            future += _differ(now, before)
            before = now
            for key, value in entry.get("points", {}).items():
                if key.startswith("system/"):
                    next_sample = max(next_sample, entry["step"] + 1)
                elif from_step is not None and entry["step"] >= from_step:
                    self._logged[key, entry["step"]] = value, future
        self._future = future + _differ(params, before)
        return next_sample

    def _is_repeated(self, key: str, step: int, value: float) -> bool:
        if (key, step) not in self._logged:
            return False
        before, future = self._logged[key, step]
        return future == self._future or before == value or (math.isnan(before) and math.isnan(value))

    def _started(self) -> Spool:
        if self._spool is None:
            raise RuntimeError("the tracker has not been started")
        return self._spool


def _differ(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Whether two configurations make different futures."""
    keys = first.keys() | second.keys()
    return any(first.get(key) != second.get(key) for key in keys if not key.startswith(CHANGES_NO_VALUE))


def _name(key: str) -> str:
    """The nearest name that MLflow takes, as it takes no batch with another one in it."""
    parts = [part for part in _NOT_IN_NAMES.sub("_", key).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:LONGEST_NAME].rstrip("/") or "_"


def _now() -> int:
    """Unix time in milliseconds."""
    return int(time.time() * 1000)

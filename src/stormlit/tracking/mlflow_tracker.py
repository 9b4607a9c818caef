"""The MLflow tracker: a local SQLite file by default, or a tracking server that may die."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from stormlit.errors import ConfigError, first_line
from stormlit.registry import Option, leaves, register
from stormlit.tracking.base import Group, Labels, Notes, Params, RunStatus, Tags, Tracker, warn
from stormlit.tracking.journal import LANES, Entry, Sender, Spool, described, send_pending
from stormlit.tracking.mlflow_store import MlflowStore, mlflow_program, record_load

LONGEST_NAME = 250  # MLflow's limit
EXPERIMENT = "stormlit"
NOTE = "mlflow.note.content"  # what MLflow shows as a run's description
LONGEST_END, LONGEST_STOP = 30.0, 10.0  # seconds for sending the rest of a finished run, and of any other
URI_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"

# Where a run is, how long it is, and who watches it changes no value that it logs.
CHANGES_NO_VALUE = ("resume", "run.", "loop.env_steps", "checkpoint.", "tracking.")

# MLflow refuses a whole batch for one name with anything else in it.
_NOT_IN_NAMES = re.compile(r"[^\w\-./ :]")


@register("tracker", "mlflow")
class MlflowTracker(Tracker):
    """Records a run in MLflow; once the run has started, no failure of the tracking store reaches the training.

    Everything is written to a spool in ``<run_dir>/spool`` first, and brought to the store by a thread: a store that is
    down or slow keeps nobody waiting, and what it could not take is sent when it is back, when the run is resumed, or
    by ``stormlit sync``. In the end the store has each point once.

    A run that is resumed logs the steps after its checkpoint again. A metric that the spool has at such a step is not
    recorded twice: the first value stays, and the second would be the same but for measured times. If the run goes on
    with another configuration, a value that differs is recorded beside the first.

    The tracking URI is that of the option, of MLFLOW_TRACKING_URI, or ``sqlite:///<root>/mlflow.db``, whichever is set
    first; a run goes on in the one in which it began. MLFLOW_EXPERIMENT_NAME takes the place of the default experiment.
    A database keeps its artifacts in ``<root>/artifacts``.

    When to use: the default.
    """

    # Made by ``start``.
    _store: MlflowStore
    _spool: Spool
    _sender: Sender
    _stop_load: Callable[[], None] | None = None

    def __init__(
        self,
        run_dir: Path,
        root: Path,
        *,
        uri: Annotated[
            str | None,
            Option("MLflow tracking URI; null: that of MLFLOW_TRACKING_URI, else the database mlflow.db in run.dir"),
        ] = None,
        experiment: Annotated[
            str, Option("MLflow experiment; MLFLOW_EXPERIMENT_NAME stands in for the default")
        ] = EXPERIMENT,
        flush_seconds: Annotated[float, Option("how long points are gathered before they are sent", low=0)] = 10.0,
        system_metrics: Annotated[bool, Option("also record the machine's load, every 10 s")] = False,
        group: Group = None,
        tags: Labels = None,
        notes: Notes = None,
    ) -> None:
        super().__init__(run_dir.resolve(), root.resolve(), group=group, tags=tags, notes=notes)
        self._uri, self._experiment = uri, experiment
        self._flush_seconds, self._system_metrics = flush_seconds, system_metrics
        # Of the steps that come again after a resume: what was logged with this configuration, and with any.
        self._logged: set[tuple[str, int]] = set()
        self._values: set[tuple[str, int, float | str]] = set()
        self._infinite: set[str] = set()  # metrics that a warning has named

    def start(
        self, *, name: str, params: Params, tags: Tags, run_id: str | None = None, from_step: int | None = None
    ) -> str:
        """See ``Tracker.start``; raises ``ConfigError`` when MLflow is not installed or its store does not answer.

        A run goes on without an answer; only a store that answers that it does not have the run is an error then.
        """
        flat = {key: str(value) for key, value in leaves(params)}
        tags = {NOTE if key == "notes" else key: value for key, value in tags.items()}
        if "run.dir" in flat:
            flat["run.dir"] = str(self.root)  # however it was spelt, and from whichever folder
        begun = self._begun(run_id)
        self._store = store = self._store_of(begun, run_id or "")
        if run_id is None and self._experiment == EXPERIMENT:
            self._experiment = os.environ.get(EXPERIMENT_VARIABLE) or EXPERIMENT
        self._experiment = begun.get("experiment", self._experiment)
        try:
            if run_id is None:
                store.create(self._experiment, name, flat, tags)
            else:
                store.find()
        except ConfigError:
            raise
        # The store may fail in many ways (connection, SQL, permissions, an unknown run).
        except Exception as error:
            if run_id is None or getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                what = "start a run" if run_id is None else f"continue run {run_id}"
                raise ConfigError(
                    f"{store.named}: MLflow could not {what} there ({first_line(error)}); "
                    "check that it is right and reachable, or use tracking=csv"
                ) from error
            warn("%s does not answer, the run goes on and is recorded later: %s", store.where, first_line(error))
        self._spool = Spool(self._spool_of(store.run_id))
        first_sample = 0
        if run_id is None:
            self._spool.append({"begin": flat, "experiment": self._experiment, "store": store.named_by})
        else:
            first_sample = self._remember(flat, from_step or 0)
            self._spool.append({"resume": flat, "tags": dict(tags)})
        if self._system_metrics:
            self._stop_load = record_load(self.log, store.uri, store.run_id, first_sample)
        self._sender = Sender(self._spool, store, self._flush_seconds)
        return store.run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        points: dict[str, float | str] = {}
        for key, value in ((_name(key), float(value)) for key, value in metrics.items()):
            written = value if math.isfinite(value) else str(value)
            if (key, step) in self._logged or (key, step, written) in self._values:
                continue
            points[key] = written
            if math.isinf(value) and key not in self._infinite:
                self._infinite.add(key)
                warn("%s is %s at step %d: MLflow has no infinity, and shows such a value as NaN", key, value, step)
        if points:
            self._spool.append({"points": points, "step": int(step), "time": _now()})

    def artifact(self, path: Path, folder: str = "") -> None:
        """See ``Tracker.artifact``; the file is read when it is sent, and must stay till then."""
        self._keep(self._spool, path, folder)

    def flush(self) -> None:
        """Make the disk hold everything logged so far. The store gets it when it can."""
        self._spool.sync()

    def where_to_look(self) -> list[str]:
        store = self._store
        source = f"from {URI_VARIABLE}; " if store.named_by == URI_VARIABLE else ""
        experiment = self._experiment
        if experiment == os.environ.get(EXPERIMENT_VARIABLE):
            experiment += f" from {EXPERIMENT_VARIABLE}"
        lines = [f"MLflow      {store.where}  ({source}experiment {experiment}, run id {store.run_id})"]
        if store.uri.startswith("sqlite:"):
            see = f"{mlflow_program()} ui --backend-store-uri {shlex.quote(store.where)}"
            lines.append(f"to see it   {see}   then open http://127.0.0.1:5000")
        return lines

    def finish(self, status: RunStatus) -> None:
        """Send the rest and close the run. A store that does not answer is waited for during some seconds only."""
        spool, sender = self._spool, self._sender
        if self._stop_load is not None:
            self._stop_load()
        spool.append({"end": status, "time": _now()})
        with contextlib.suppress(OSError):  # which has been told
            spool.sync()
        # A run that is stopped from outside may have little time left.
        patience = LONGEST_END if status == "FINISHED" and not sender.failing else LONGEST_STOP
        if not sender.finish(patience):
            warn(
                "%s were not sent to %s and are kept in %s%s; send them with `stormlit sync %s`",
                spool.backlog(),
                sender.store.where,
                spool.path,
                "".join(f" ({first_line(error)})" for error in list(sender.failing.values())[:1]),
                shlex.quote(str(self.run_dir)),
            )
        spool.close()

    def keep(self, run_id: str, path: Path, folder: str = "") -> None:
        """Note a further file of a run that nobody records any more, for ``send_backlog`` to send."""
        with contextlib.closing(Spool(self._spool_of(run_id))) as spool:
            self._keep(spool, path, folder)
            spool.sync()

    def send_backlog(self) -> str:
        """Send what the runs of this folder could not, without starting anything; returns how much, in words.

        Raises ``ConfigError`` when the store does not take it. No other process may be recording the run.
        """
        sent: list[Entry] = []
        for path in sorted((self.run_dir / "spool").glob("*.spool")):
            with contextlib.closing(Spool(path)) as spool:
                if spool.all_sent():
                    continue
                store = self._store_of(self._begun(path.stem), path.stem)
                try:
                    for lane in LANES:
                        for entries in send_pending(spool, store, lane):
                            sent += entries
                except ConfigError:
                    raise
                except Exception as error:
                    raise ConfigError(
                        f"{store.named}: {spool.backlog()} of run {path.stem} are still to be sent "
                        f"({first_line(error)}); check that it is right and reachable"
                    ) from error
        return described(sent)

    def _keep(self, spool: Spool, path: Path, folder: str) -> None:
        path = path.resolve()
        if path.is_relative_to(self.run_dir):  # found again when the run has been moved
            path = path.relative_to(self.run_dir)
        spool.append({"artifact": str(path), "folder": folder})

    def _spool_of(self, run_id: str) -> Path:
        return self.run_dir / "spool" / f"{run_id}.spool"

    def _begun(self, run_id: str | None) -> Entry:
        """How the run began, empty where that is not known."""
        if run_id is None or not self._spool_of(run_id).exists():
            return {}
        with contextlib.closing(Spool(self._spool_of(run_id))) as spool:
            return next((entry for entry in spool.entries() if "begin" in entry), {})

    def _store_of(self, begun: Entry, run_id: str) -> MlflowStore:
        """The store that is configured, or, with nothing configured, the one in which the run began."""
        variable = os.environ.get(URI_VARIABLE)
        named_by = begun.get("store") if begun else variable and URI_VARIABLE
        if self._uri is not None or named_by != URI_VARIABLE:
            return MlflowStore(self._uri, self.run_dir, self.root, run_id)
        if not variable:
            raise ConfigError(
                f"run {run_id} is recorded where {URI_VARIABLE} led when it began, and that is not set now: set it, or "
                "give tracking.uri=..."
            )
        return MlflowStore(variable, self.run_dir, self.root, run_id, URI_VARIABLE)

    def _remember(self, params: Mapping[str, str], from_step: int) -> int:
        """Read from the spool what was logged at steps that come again.

        Returns the number of the next sample of the machine's load.
        """
        before: Mapping[str, str] = {}
        next_sample = 0
        for entry in self._spool.entries():
            now: Mapping[str, str] = entry.get("begin") or entry.get("resume") or before
            if _differ(now, before):
                self._logged.clear()
            before = now
            for key, value in entry.get("points", {}).items():
                if key.startswith("system/"):
                    next_sample = max(next_sample, entry["step"] + 1)
                elif entry["step"] >= from_step:
                    self._logged.add((key, entry["step"]))
                    self._values.add((key, entry["step"], value))
        if _differ(params, before):
            self._logged.clear()
        return next_sample


def _differ(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Whether runs of two configurations log different values."""
    keys = first.keys() | second.keys()
    return any(first.get(key) != second.get(key) for key in keys if not key.startswith(CHANGES_NO_VALUE))


def _name(key: str) -> str:
    """The nearest name that MLflow takes, as it takes no batch with another one in it."""
    parts = [part for part in _NOT_IN_NAMES.sub("_", key).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:LONGEST_NAME].rstrip("/") or "_"


def _now() -> int:
    """Unix time in milliseconds."""
    return int(time.time() * 1000)

"""The machine's load, sampled by MLflow's own monitors in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from stormlit.errors import ConfigError
from stormlit.tracking.sender import first_line

_log = logging.getLogger(__name__)


class MachineLoad:
    """Hands processor, memory, disk, network and GPU load to ``log`` every 10 s, numbered from ``first_sample`` on.

    MLflow's monitor would talk to the store itself, and give up for good the first time that fails.
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the 10 s.  Raises ``ConfigError`` when psutil is missing.
    """

    def __init__(
        self, log: Callable[[Mapping[str, float], int], None], uri: str, run_id: str, first_sample: int
    ) -> None:
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
        except ImportError as error:
            raise ConfigError(
                "tracking.system_metrics=true needs psutil: `pip install psutil`, or leave it false"
            ) from error
        self._log, self._sample = log, first_sample
        self._monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)  # only collects: its thread is not started
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stormlit-machine-load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        try:
            self._monitor.collect_metrics()  # rates are counted from here
            while not self._stopped.wait(self._monitor.sampling_interval):
                self._monitor.collect_metrics()
                load = self._monitor.aggregate_metrics()
                self._log({f"system/{key}": value for key, value in load.items()}, self._sample)
                self._sample += 1
                for part in self._monitor.monitors:
                    part.clear_metrics()
        except Exception as error:  # a driver that fails is no reason to stop training
            _log.warning("the machine's load is no longer recorded: %s", first_line(error))

"""Where the numbers go: trackers by name (``mlflow``, ``csv``, ``none``), and the buffer that gathers metrics."""

from __future__ import annotations

from stormlit.storm.metrics import MetricBuffer
from stormlit.tracking.base import RunStatus, Tracker
from stormlit.tracking.csv_tracker import CsvTracker
from stormlit.tracking.environment_tags import run_tags
from stormlit.tracking.mlflow_tracker import MlflowTracker
from stormlit.tracking.none_tracker import NoneTracker

__all__ = ["CsvTracker", "MetricBuffer", "MlflowTracker", "NoneTracker", "RunStatus", "Tracker", "run_tags"]

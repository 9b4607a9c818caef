"""Where the numbers go: trackers by name (``mlflow``, ``csv``, ``none``)."""

from __future__ import annotations

from stormlit.tracking.base import NoneTracker, RunStatus, Tracker
from stormlit.tracking.csv_tracker import CsvTracker
from stormlit.tracking.environment_tags import run_tags
from stormlit.tracking.mlflow_tracker import MlflowTracker

__all__ = ["CsvTracker", "MlflowTracker", "NoneTracker", "RunStatus", "Tracker", "run_tags"]

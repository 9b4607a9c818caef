"""``stormlit sync``: sending what a run's tracking store could not take while it trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stormlit.config.compose import compose
from stormlit.errors import ConfigError
from stormlit.registry import build
from stormlit.runs.directory import exclusive, find_run
from stormlit.tracking import MlflowTracker


def sync_run(reference: str, root: Path, overrides: Sequence[str]) -> str:
    """Send a run's backlog; returns what to tell.

    overrides: changes to the run's configuration, such as the ``tracking.uri`` of a server that has moved.
    Raises ``ConfigError`` when the store does not take it, when the run is training, which sends by itself, or when its
    tracker leaves nothing to send.
    """
    directory, _ = find_run(reference, root)
    node = compose([str(directory.config_file)], list(overrides)).tracking
    tracker = build("tracker", node, directory.path, directory.root, key="tracking")
    if not isinstance(tracker, MlflowTracker):
        raise ConfigError(f"{directory.path} is tracked with tracking={node['name']}, which leaves nothing to send")
    with exclusive(directory, otherwise="it sends its metrics by itself"):
        sent = tracker.send_backlog()
    return f"{directory.name}: sent {sent}" if sent else f"{directory.name}: nothing is left to send"

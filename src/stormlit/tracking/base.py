"""What every tracker can do.

A tracker is a registered part of kind ``tracker``, built as ``build("tracker", node, run_dir, root)``, where
``run_dir`` is the folder of this run and ``root`` the folder that holds all runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@runtime_checkable
class Tracker(Protocol):
    """Records one run: ``start`` once, then ``log`` and ``artifact`` at will, then ``finish`` once."""

    def start(
        self,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        from_step: int | None = None,
    ) -> str:
        """Begin a run, or continue the run ``run_id``, and return its id.

        params: the nested, resolved configuration; recorded for a new run only, since it may not change afterwards.
        from_step: the environment step a run goes on from. What was logged behind it, by a process that died later,
        is logged again and must be there once in the end.
        Raises ``ConfigError`` when the tracker cannot work as configured.
        """
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record one point per metric at ``step`` (environment steps); cheap, never raises for a lost connection."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file, or a folder under its own name, in the run's artifact folder ``folder``."""
        ...

    def flush(self) -> None:
        """Write out everything logged so far."""
        ...

    def where_to_look(self) -> list[str]:
        """Lines that tell a person where the numbers are and how to see them."""
        ...

    def finish(self, status: RunStatus) -> None:
        """Write out everything and close the run with ``status``."""
        ...

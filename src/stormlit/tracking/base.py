"""What a tracker does, with defaults for what it need not do, and the tracker that does nothing.

A tracker is a registered part of kind ``tracker``, built as ``build("tracker", node, run_dir, root)``, where
``run_dir`` is the folder of this run and ``root`` the folder that holds all runs.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from stormlit.registry import Option, leaves, register, require_base

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
Params = Mapping[str, Any]
Tags = Mapping[str, str]

# Options that every tracker of ours takes, and hands to its base.
Group = Annotated[str | None, Option("a word that runs which belong together have in common")]
Labels = Annotated[dict[str, Any] | None, Option("tags of the run, each as tracking.tags.NAME=VALUE", any_keys=True)]
Notes = Annotated[str | None, Option("a text about the run, which MLflow shows as its description")]

_log = logging.getLogger(__name__)


class Tracker(ABC):
    """Records one run: ``start`` once, then ``log`` and ``artifact`` at will, then ``finish`` once.

    Only ``log`` has to be written; the other methods do nothing by default.

    group, tags, notes: what a person, or a grid, wants to find the run again by; ``labels`` are their tags.
    """

    group: str | None = None
    tags: Tags = MappingProxyType({})
    notes: str | None = None

    def __init__(
        self, run_dir: Path, root: Path, *, group: Group = None, tags: Labels = None, notes: Notes = None
    ) -> None:
        self.run_dir, self.root = run_dir, root
        self.group, self.notes = group, notes
        self.tags = {key: str(value) for key, value in leaves(tags or {})}

    @property
    def labels(self) -> dict[str, str]:
        """``tags``, with ``group`` and ``notes`` as tags of these names."""
        named = {"group": self.group, "notes": self.notes}
        return {**self.tags, **{key: value for key, value in named.items() if value}}

    def start(
        self, *, name: str, params: Params, tags: Tags, run_id: str | None = None, from_step: int | None = None
    ) -> str:
        """Begin a run, or continue the run ``run_id``, and return its id.

        params: the nested, resolved configuration; recorded for a new run only, since it may not change afterwards.
        from_step: the environment step a run goes on from. What was logged after it, by a process that died later,
        is logged again and must be there once in the end.
        Raises ``ConfigError`` when the tracker cannot work as configured.
        """
        return run_id or uuid.uuid4().hex

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record one point per metric at ``step`` (environment steps); cheap, never raises for a lost connection."""

    def artifact(self, path: Path, folder: str = "") -> None:  # noqa: B027 - optional
        """Keep a file, or a folder under its own name, in the run's artifact folder ``folder``."""

    def flush(self) -> None:  # noqa: B027 - optional
        """Write out everything logged so far."""

    def where_to_look(self) -> list[str]:
        """Lines that tell a person where the numbers are and how to see them; the first is shown at the start too."""
        return []

    def finish(self, status: RunStatus) -> None:  # noqa: B027 - optional
        """Write out everything and close the run with ``status``."""


require_base("tracker", Tracker, "stormlit.tracking.base.Tracker")


@register("tracker", "none")
class NoneTracker(Tracker):
    """Drops everything; only hands out a run id.

    When to use: where nothing is to be kept, as in measurements of speed.
    """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass


def warn(message: str, *arguments: object) -> None:
    """Log a warning; a terminal or a pipe that is closed by now is no reason to stop."""
    with contextlib.suppress(Exception):
        _log.warning(message, *arguments)

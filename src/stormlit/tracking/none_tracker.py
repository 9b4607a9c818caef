"""A tracker that keeps nothing."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stormlit.registry import register
from stormlit.tracking.base import RunStatus


@register("tracker", "none")
class NoneTracker:
    """Drops everything; only hands out a run id."""

    def __init__(self, run_dir: Path, root: Path) -> None:
        pass

    def start(
        self,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        from_step: int | None = None,
    ) -> str:
        return run_id or uuid.uuid4().hex

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def artifact(self, path: Path, folder: str = "") -> None:
        pass

    def flush(self) -> None:
        pass

    def where_to_look(self) -> list[str]:
        return []

    def finish(self, status: RunStatus) -> None:
        pass

"""A whole training run in pieces, each with a time limit: step ``train`` of ``gpu_protocol.py``.

What the pieces took is kept in the run's own folder, so that this is all that has to be carried from one to the next.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocol_children import run_python

from stormlit.errors import ConfigError
from stormlit.files import read_json, write_json
from stormlit.runs.checkpoint import list_checkpoints
from stormlit.runs.directory import RunDirectory

RECORD = "protocol.json"
# Of a piece's seconds, those kept for saving a checkpoint; at most so many.
SAVING_SHARE, SAVING_SECONDS = 0.25, 45.0


@dataclass(frozen=True)
class Run:
    """What to train.  config: name of a configuration.  overrides: ``KEY=VALUE`` words.  env_steps: the budget."""

    directory: RunDirectory
    config: str
    overrides: list[str]
    env_steps: int

    def arguments(self) -> list[str]:
        """Of Python: to go on from the newest checkpoint, or to begin."""
        where = f"run.dir={self.directory.root}"
        if list_checkpoints(self.directory):
            return ["-m", "stormlit", "resume", self.directory.name, where]
        return ["-m", "stormlit", "train", self.config, *self.overrides, where, f"run.name={self.directory.name}"]

    def env_steps_saved(self) -> int:
        """Of the newest checkpoint, 0 before the first."""
        checkpoints = list_checkpoints(self.directory)
        return int(read_json(checkpoints[-1] / "manifest.json")["env_steps"]) if checkpoints else 0

    def evaluation(self) -> dict[str, Any] | None:
        """The last evaluation's mean, standard error and score; None before the end."""
        saved = self.env_steps_saved()
        file = self.directory.evaluation / f"step-{saved:09d}.json"
        if saved < self.env_steps or not file.is_file():
            return None
        played = read_json(file)
        episodes = len(played["episodes"])
        error = played["std"] / episodes**0.5
        kept = {key: played[key] for key in ("game", "mean", "human_normalized")}
        return {**kept, "standard_error": error, "episodes": episodes}

    def latest_return(self) -> float | None:
        """Of the episodes that ended in the last interval of logging."""
        file = self.directory.path / "metrics.csv"
        if not file.is_file():
            return None
        with file.open(newline="", encoding="utf-8") as rows:
            found = [row["value"] for row in csv.DictReader(rows) if row["key"] == "episode/return"]
        return float(found[-1]) if found else None


def train_piece(
    run: Run,
    made_with: dict[str, Any],
    settings: dict[str, Any],
    seconds: float,
    publish: Callable[[dict[str, Any]], None],
) -> int | None:
    """Train for at most so many seconds; returns the training's exit code, None where it was stopped in time.

    settings: what the run was begun with.  publish: is given the numbers until now, again and again while training.
    Raises ``ConfigError`` for a run that was begun with other settings.
    """
    record = run.directory.path / RECORD
    before = read_json(record) if record.is_file() else {"settings": settings, "pieces": []}
    if before["settings"] != settings:
        raise ConfigError(f"--name={run.directory.name}: that run was begun with other settings; choose another name")
    tags = {key: made_with[key] for key in ("device", "git_commit", "git_dirty")}
    piece: dict[str, Any] = {**tags, "from_env_steps": run.env_steps_saved(), "exit_code": None}
    start = time.monotonic()

    def note() -> None:
        piece.update(to_env_steps=run.env_steps_saved(), seconds=time.monotonic() - start)
        pieces = [*before["pieces"], piece]
        write_json(record, {"settings": settings, "pieces": pieces})
        publish(numbers(run, pieces))

    if run.evaluation() is not None:
        publish(numbers(run, before["pieces"]))
        return 0
    saving = min(SAVING_SECONDS, SAVING_SHARE * seconds)
    try:
        piece["exit_code"] = run_python(run.arguments(), limit=seconds - saving, grace=saving, beat=note)
    finally:
        note()
    return piece["exit_code"]


def numbers(run: Run, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """What has come out until now.  Seconds are those of all pieces, with their starts and evaluations."""
    return {
        "env_steps": run.env_steps_saved(),
        "budget": run.env_steps,
        "seconds": sum(piece["seconds"] for piece in pieces),
        "latest_return": run.latest_return(),
        "evaluation": run.evaluation(),
        "pieces": pieces,
    }

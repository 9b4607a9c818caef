"""What a grid remembers of itself: ``grid.json`` in its folder, and a run in MLflow of which its cells are children.

``grid.json`` says which cells there are and what each asks for, so that a grid which has begun stays what it was; how
far a cell has come is read from its own folder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stormlit.config.compose import from_tree
from stormlit.config.schema import keys_of
from stormlit.errors import ConfigError
from stormlit.files import read_json, write_json
from stormlit.registry import build
from stormlit.runs.after_step import warn_on_os_error
from stormlit.runs.result import asked, differences
from stormlit.sweeps.cells import Cell
from stormlit.sweeps.grid import Grid
from stormlit.tracking import RunStatus, Tracker

FORMAT = 1
FILE = "grid.json"
CELL_KEYS = ("name", "variant", "environment", "seed")
REPORT = "report"  # the folder of the page in the grid's
PARENT_TAG = "tracking.tags.mlflow.parentRunId"  # what MLflow itself calls it

# What may change in a grid that has begun: where its runs compute and what they leave, not what comes out.
MAY_CHANGE = keys_of("operation", "saving")


class Record:
    """A grid's file, read and written; ``content`` is what is in it.

    Keys: ``format``; ``name``; ``words`` of the base; ``base``: the variant that changes nothing, or None;
    ``variants``: name -> ``words`` and ``changes`` (key -> [base's value, its own]); ``environments``; ``seeds``;
    ``cells``: ``CELL_KEYS`` of each; ``asked``: variant -> environment -> what
    its configuration asks for; ``attempts``: how often each cell was started; ``parent``: the MLflow run, or None.
    """

    def __init__(self, grid: Grid, cells: Sequence[Cell], folder: Path) -> None:
        """With what the folder has of it already; nothing is written.

        Raises ``ConfigError`` when a cell is gone, or has begun and would be another one now.
        """
        before = read_json(folder / FILE) if (folder / FILE).is_file() else {}
        self.folder = folder
        self.config = cells[0].config
        named = {cell.name: cell for cell in cells}
        for known in before.get("cells", []):
            cell = named.get(known["name"])
            what = "is not in it any more" if cell is None else _change(before.get("asked", {}), cell)
            if what:
                raise ConfigError(
                    f"grid '{grid.name}' in {folder} began as another one: its cell '{known['name']}' {what}; give it "
                    "back, or begin another grid with --name NAME (variants, environments and seeds may be added)"
                )
        changes = {cell.variant: dict(cell.changes) for cell in reversed(cells)}
        variants = {name: {"words": list(words), "changes": changes[name]} for name, words in grid.variants.items()}
        asked_for: dict[str, dict[str, Any]] = {variant: {} for variant in grid.variants}
        for cell in cells:
            asked_for[cell.variant].setdefault(cell.environment, asked(cell.config))
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "name": grid.name,
            "words": list(grid.base),
            "base": next((variant for variant in grid.variants if not changes[variant]), None),
            "variants": variants,
            "environments": list(dict.fromkeys(cell.environment for cell in cells)),
            "seeds": list(grid.seeds),
            "cells": [{key: getattr(cell, key) for key in CELL_KEYS} for cell in cells],
            "asked": asked_for,
            "attempts": before.get("attempts", {}),
            "parent": before.get("parent"),
        }

    def write(self) -> None:
        """Raises ``ConfigError`` where the folder cannot be written."""
        try:
            write_json(self.folder / FILE, self.content)
        except OSError as error:
            raise ConfigError(
                f"run.dir={self.folder.parent}: cannot write there ({error.strerror or error})"
            ) from error

    def count_attempt(self, cell: Cell) -> None:
        self.content["attempts"][cell.name] = self.content["attempts"].get(cell.name, 0) + 1
        self.write()

    @contextlib.contextmanager
    def parent_run(self) -> Iterator[list[str]]:
        """A run for the grid, open while its cells run; gives the words that make them its children, none without
        MLflow. It ends as the block does: finished, killed by a signal, or failed.
        """
        if self.config.tracking["name"] != "mlflow":
            yield []
            return
        content = self.content
        tracker: Tracker = build("tracker", self.config.tracking, self.folder, self.folder, key="tracking")
        params = {key: content[key] for key in ("words", "environments", "seeds")}
        params["variants"] = {name: " ".join(variant["words"]) for name, variant in content["variants"].items()}
        tags = {**tracker.labels, "grid": content["name"]}
        content["parent"] = tracker.start(name=content["name"], params=params, tags=tags, run_id=content["parent"])
        self.write()
        status: RunStatus = "KILLED"
        try:
            yield [f"{PARENT_TAG}={json.dumps(content['parent'])}"]
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            with warn_on_os_error("the last words of the grid's run"):
                for kept in (self.folder / FILE, self.folder / REPORT):
                    if kept.exists():
                        tracker.artifact(kept)
                tracker.finish(status)


def _change(before: dict[str, dict[str, Any]], cell: Cell) -> str:
    """How a cell that has begun differs from what it was; empty where it does not, or has not begun.

    before: variant -> environment -> what was asked for.
    """
    was = before.get(cell.variant, {}).get(cell.environment)
    if was in (None, asked(cell.config)) or not cell.directory.config_file.is_file():
        return ""
    try:
        changed = differences(from_tree(was), cell.config)
    except ConfigError as error:  # of a version that had other keys
        return f"began with a configuration that is none now ({error})"
    for key, (old, new) in changed.items():
        if not key.startswith(MAY_CHANGE):
            return f"began with {key}={old} and has {new} now"
    return ""

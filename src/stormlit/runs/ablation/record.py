"""What a grid remembers of itself: ``grid.json`` in its folder.

Which cells there are and what each of them is, so that a grid which has begun stays what it was; the state of a cell is
read from its own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stormlit.errors import ConfigError
from stormlit.files import read_json, write_json
from stormlit.runs.ablation.cells import Cell
from stormlit.runs.ablation.grid import Grid
from stormlit.runs.result import config_hash

FORMAT = 1
FILE = "grid.json"


class Record:
    """A grid's file, read and written; ``content`` is what is in it.

    Keys: ``format``; ``name``; ``words`` of the base; ``base``: the variant that changes nothing, or None;
    ``variants``: name -> ``words`` and ``changes`` (key -> [base's value, its own]); ``environments``; ``seeds``;
    ``cells``: ``name``, ``variant``, ``environment``, ``seed`` and ``config_hash`` of each; ``attempts``: how often
    each was started; ``parent``: the MLflow run of the grid, or None.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    @classmethod
    def of(cls, grid: Grid, cells: Sequence[Cell], folder: Path) -> Record:
        """The record of a grid, with what the folder has of it already; nothing is written.

        Raises ``ConfigError`` when a cell that has begun would be another one now.
        """
        before = read_json(folder / FILE) if (folder / FILE).is_file() else {}
        named = {cell.name: config_hash(cell.config) for cell in cells}
        for known in before.get("cells", []):
            if known["name"] not in named:
                what = "is not in it any more"
            elif named[known["name"]] != known["config_hash"]:
                what = "has another configuration now"
            else:
                continue
            raise ConfigError(
                f"grid '{grid.name}' in {folder} began as another one: its cell '{known['name']}' {what}; give it "
                "back, or begin another grid with --name NAME (variants, environments and seeds may be added)"
            )
        changes = {cell.variant: dict(cell.changes) for cell in reversed(cells)}
        content = {
            "format": FORMAT,
            "name": grid.name,
            "words": list(grid.base),
            "base": next((variant for variant in grid.variants if not changes[variant]), None),
            "variants": {
                name: {"words": list(words), "changes": changes[name]} for name, words in grid.variants.items()
            },
            "environments": list(dict.fromkeys(cell.environment for cell in cells)),
            "seeds": list(grid.seeds),
            "cells": [
                {
                    **{key: getattr(cell, key) for key in ("name", "variant", "environment", "seed")},
                    "config_hash": named[cell.name],
                }
                for cell in cells
            ],
            "attempts": before.get("attempts", {}),
            "parent": before.get("parent"),
        }
        return cls(folder, content)

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

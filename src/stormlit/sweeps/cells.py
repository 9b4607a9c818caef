"""The cells of a grid: the run each of them is, whether it can be made, what it would take and what came out."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stormlit.config.compose import compose, is_override
from stormlit.config.schema import Config
from stormlit.envs import env_name
from stormlit.errors import CheckpointError, ConfigError, StormlitError
from stormlit.registry import schema
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.runs.directory import RunDirectory, is_training
from stormlit.runs.estimate import check_memory, seconds_per_env_step
from stormlit.runs.result import VARIANT, Result, config_hash, differences, read
from stormlit.sweeps.grid import Grid, refuse_repeated


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    folder: of the run.  words: what ``stormlit train`` is given.  config: what they resolve to.
    changes: key -> (the base's, this cell's) value.
    """

    name: str
    variant: str
    environment: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    config: Config
    changes: Mapping[str, tuple[Any, Any]]

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.folder)

    @property
    def log(self) -> Path:
        """Where the output of its processes goes."""
        return self.folder / "cell.log"

    @property
    def threads(self) -> int:
        """That it computes with on a CPU."""
        return int(self.config.threads)

    @property
    def on_gpu(self) -> bool:
        """Whether it would train on a GPU here."""
        return self.config.accelerator != "cpu" and torch.cuda.is_available()

    def result(self) -> Result | None:
        """What came out, None while the run is not finished to its last evaluation."""
        try:
            found = read(self.folder)
        except CheckpointError:  # damaged: going on with the run writes it again
            return None
        if found is None or found.env_steps < self.config.loop.env_steps or self.directory.finished_at() is None:
            return None
        return found

    def is_running(self) -> bool:
        return is_training(self.directory)


def cells_of(grid: Grid) -> list[Cell]:
    """Every run of a grid, resolved; seeds of one variant and environment stand together.

    Raises ``ConfigError`` naming the variant, for whatever is wrong with one, and for two that are the same.
    """
    files = [word for word in grid.base if not is_override(word)]
    words = [word for word in grid.base if is_override(word)]
    cells: list[Cell] = []
    for environment in grid.environments or ("",):
        of_base = [*words, environment] if environment else words
        base = compose(files, of_base)
        seen: dict[str, str] = {}
        for variant, changed in grid.variants.items():
            given = [*of_base, *changed]
            try:
                config = compose(files, given)
                tracker = config.tracking["name"]
                for label in {"group", "tags"} - schema("tracker", tracker).keys():
                    raise ConfigError(
                        f"tracking={tracker} has no option '{label}', by which a grid's runs are told apart"
                    )
            except StormlitError as error:
                raise ConfigError(f"variant '{variant}': {error}") from error
            if config.threads == "auto":  # each takes one core, and the grid takes all
                given, config = [*given, "threads=1"], dataclasses.replace(config, threads=1)
            same = seen.setdefault(config_hash(config), variant)
            if same != variant:
                raise ConfigError(f"the variants '{same}' and '{variant}' are one configuration: leave one of them out")
            cells += _seeds(grid, variant, [*files, *given], config, differences(base, config))
    refuse_repeated([cell.name for cell in cells], "cells", "two environments, or a variant's own, have one name")
    return cells


def _seeds(
    grid: Grid, variant: str, words: Sequence[str], config: Config, changes: Mapping[str, tuple[Any, Any]]
) -> Iterator[Cell]:
    environment = env_name(config.env)
    folder = Path(config.run.dir).resolve() / grid.name  # whoever runs it may be in another folder
    # In quotes, so that a variant called 010 or on keeps its name.
    tags = [f"tracking.tags.{VARIANT}={json.dumps(variant)}", f"tracking.tags.environment={json.dumps(environment)}"]
    if config.tracking["group"] is None:
        tags.append(f"tracking.group={grid.name}")
    for seed in grid.seeds:
        name = f"{variant}-{environment}-s{seed}"
        own = (f"seed={seed}", f"run.dir={folder}", f"run.name={name}", "resume=auto", *tags)
        seeded = dataclasses.replace(config, seed=seed)
        yield Cell(name, variant, environment, seed, folder / name, (*words, *own), seeded, changes)


def one_of_each(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of every variant and of every environment."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        first.setdefault(("variant", cell.variant), cell)
        first.setdefault(("environment", cell.environment), cell)
    return list({cell.name: cell for cell in first.values()}.values())


def check(cell: Cell, *, timed: bool = False) -> float:
    """Build all that a cell needs; raises what is wrong with it, with the variant's name.

    timed: also return about how many seconds its updates take on this CPU, by timing some of them.
    """
    before, config = torch.get_num_threads(), cell.config
    if cell.on_gpu:  # this process takes no memory of a GPU
        replay = dataclasses.replace(config.replay, device="auto")
        config = dataclasses.replace(config, accelerator="cpu", precision="auto", compile=False, replay=replay)
    try:
        training = build_training(config, make_fabric(config))
        try:
            check_memory(config, training)
            torch.set_num_threads(cell.threads)
            steps = training.plan.env_steps - training.plan.warmup_steps
            return steps * seconds_per_env_step(config, training) if timed else 0.0
        finally:
            training.envs.close()
            torch.set_num_threads(before)
    except StormlitError as error:
        raise type(error)(f"variant '{cell.variant}' on {cell.environment}: {error}") from error


def estimate(cells: Sequence[Cell], waiting: Sequence[Cell], slots: int | None) -> str:
    """How long those of a grid's cells that wait would take, as a sentence; builds one of each as ``check`` does."""
    on_gpu = any(cell.on_gpu for cell in cells)
    seconds = [check(cell, timed=not on_gpu) for cell in one_of_each(cells)]
    if on_gpu:
        return f"{len(waiting)} cells to run; what trains on a GPU is not timed beforehand"
    hours = sum(seconds) / len(seconds) * len(waiting) / 3600
    at_once = slots or len(waiting) or 1
    return (
        f"{len(waiting)} cells to run: about {hours:.2g} hours of updates by timing some of them here, "
        f"{hours / max(min(at_once, len(waiting)), 1):.2g} hours with {at_once} at once; playing and evaluating come "
        "on top"
    )


def last_lines(log: Path, size: int = 8000) -> list[str]:
    """The lines in the last ``size`` bytes of a file, without empty ones; each state of a bar is a line."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - size, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]

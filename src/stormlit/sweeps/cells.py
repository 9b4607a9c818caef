"""The cells of a grid: the run each of them is, whether it can be made, and how far it has come."""

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
from stormlit.sweeps.grid import Grid

LOG = "cell.log"
LABELS = ("group", "tags")
# The progress bar's own line, which a cell writes to its log.
_BAR = re.compile(r"\| (\d+)/\d+ \[[^\]]*\]?")


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
        return self.folder / LOG

    @property
    def threads(self) -> int:
        """That it computes with on a CPU."""
        return int(self.config.threads)

    @property
    def wanted(self) -> int:
        """Environment steps."""
        return self.config.loop.env_steps

    def result(self) -> Result | None:
        """What came out, None while it is not finished: a run that was killed in its last words makes its end anew."""
        try:
            found = read(self.folder)
        except CheckpointError:  # damaged: going on with the run writes it again
            return None
        if found is None or found.env_steps < self.wanted or self.directory.finished_at() is None:
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
        chosen = [environment] if environment else []
        base = compose(files, [*words, *chosen])
        seen: dict[str, str] = {}
        for variant, changed in grid.variants.items():
            given = [*files, *words, *chosen, *changed]
            try:
                config = compose(files, given[len(files) :])
                _check_labels(config)
                if config.threads == "auto":  # each takes one core, and the grid takes all
                    given, config = [*given, "threads=1"], dataclasses.replace(config, threads=1)
            except StormlitError as error:
                raise ConfigError(f"variant '{variant}': {error}") from error
            same = seen.setdefault(config_hash(config), variant)
            if same != variant:
                raise ConfigError(f"the variants '{same}' and '{variant}' are one configuration: leave one of them out")
            cells += _cells(grid, variant, given, config, differences(base, config))
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two cells are called '{name}': two environments, or a variant's own, have one name")
    return cells


def _cells(
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
        yield Cell(
            name,
            variant,
            environment,
            seed,
            folder / name,
            (*words, *own),
            dataclasses.replace(config, seed=seed),
            changes,
        )


def _check_labels(config: Config) -> None:
    tracker = config.tracking["name"]
    for label in LABELS:
        if label not in schema("tracker", tracker):
            raise ConfigError(f"tracking={tracker} has no option '{label}', by which a grid's runs are told apart")


def check(cells: Sequence[Cell]) -> None:
    """Build every variant once, and one on every environment; raises the first error, with the variant's name."""
    for cell in one_of_each(cells):
        seconds_of(cell, timed=False)


def one_of_each(cells: Sequence[Cell]) -> list[Cell]:
    """The fewest cells that hold every variant, on the first environment, and every environment."""
    chosen: dict[str, Cell] = {}
    for cell in cells:
        if cell.environment == cells[0].environment or cell.variant == cells[0].variant:
            chosen.setdefault(f"{cell.variant}\0{cell.environment}", cell)
    return list(chosen.values())


def seconds_of(cell: Cell, *, timed: bool = True) -> float | None:
    """Build all that a cell needs, and time some of its updates on this CPU: an estimate of the seconds it takes.

    timed: without, nothing is timed and None is returned, as for what trains on a GPU.
    Raises what is wrong with it, with the variant's name.
    """
    before = torch.get_num_threads()
    config, on_gpu = cell.config, cell.config.accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu:  # this process takes no memory of a GPU
        replay = dataclasses.replace(config.replay, device="auto")
        config = dataclasses.replace(config, accelerator="cpu", precision="auto", compile=False, replay=replay)
    try:
        training = build_training(config, make_fabric(config))
        try:
            check_memory(config, training)
            if on_gpu or not timed:
                return None
            torch.set_num_threads(cell.threads)
            return (training.plan.env_steps - training.plan.warmup_steps) * seconds_per_env_step(config, training)
        finally:
            training.envs.close()
            torch.set_num_threads(before)
    except StormlitError as error:
        raise type(error)(f"variant '{cell.variant}' on {cell.environment}: {error}") from error


@dataclass(frozen=True)
class Progress:
    """What a cell's log says last: environment steps, the latest return, the time left, as the bar shows them."""

    env_steps: int | None = None
    latest_return: str = ""
    left: str = ""


def progress(log: Path) -> Progress:
    """How far a running cell is."""
    line = next((part for part in reversed(last_lines(log, 2000)) if _BAR.search(part)), "")
    bar = _BAR.search(line)
    if bar is None:
        return Progress()
    found = {
        name: re.search(pattern, bar[0])
        for name, pattern in (("return", r"return (\S+?)\]?$"), ("left", r"([\d:]+) left"))
    }
    return Progress(int(bar[1]), *(match[1] if match else "" for match in found.values()))


def last_lines(log: Path, size: int = 8000) -> list[str]:
    """The lines in the last ``size`` bytes of a file, without empty ones; each state of a bar is a line."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - size, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]

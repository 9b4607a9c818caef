"""Which runs a report is about: runs, folders of runs, groups and experiments, and what each of them has left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stormlit.errors import CheckpointError, ConfigError, nearest
from stormlit.files import read_json
from stormlit.runs import result as results
from stormlit.runs.checkpoint import list_checkpoints
from stormlit.runs.directory import RunDirectory, find_run
from stormlit.runs.result import Result
from stormlit.sweeps.grid_file import FILE as GRID


@dataclass(frozen=True, slots=True)
class Found:
    """A run's folder with its result, None while it is not finished.  config: as in its file, {} if there is none."""

    folder: Path
    result: Result | None
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def env_steps(self) -> int:
        """Of its newest checkpoint, or at its end."""
        if self.result is not None:
            return self.result.env_steps
        checkpoints = list_checkpoints(RunDirectory(self.folder))
        return int(checkpoints[-1].name.partition("-")[2]) if checkpoints else 0

    def tracked_as(self, key: str) -> str:
        """``group`` or ``experiment`` of its tracking, "" where there is none."""
        if key == "group" and self.result is not None:
            return str(self.result.run.get("group") or "")
        node = self.config.get("tracking")
        return str(node.get(key) or "") if isinstance(node, dict) else ""


def gather(references: Sequence[str], root: Path) -> list[Found]:
    """The runs of every reference, each once, in the order of the references and then of a grid's cells or of names.

    references: a run's name, MLflow id or path; a folder of runs; a group (``tracking.group``), such as a grid's name;
    an experiment of MLflow (``tracking.experiment``).  root: where runs are looked for.
    Raises ``ConfigError`` for one that names nothing, ``CheckpointError`` for a damaged result.
    """
    found: dict[Path, Found] = {}
    for reference in references:
        for folder in _folders(reference, root):
            found.setdefault(folder.resolve(), _read(folder))
    return list(found.values())


def grid_base(references: Sequence[str], root: Path) -> str | None:
    """The variant of the first grid among the references that changes nothing, None where there is none."""
    for folder in (folder for reference in references for folder in (Path(reference), root / reference)):
        with contextlib.suppress(OSError, ValueError):
            if (folder / GRID).is_file():
                base = read_json(folder / GRID).get("base")
                return str(base) if base is not None else None
    return None


def _folders(reference: str, root: Path) -> list[Path]:
    for folder in (Path(reference), root / reference):
        with contextlib.suppress(OSError, ValueError):  # too long for a file name, or with a null byte
            if any((folder / name).is_file() for name in ("run.json", results.FILE)):
                return [folder]
            if (folder / GRID).is_file():
                return [folder / str(cell["name"]) for cell in read_json(folder / GRID).get("cells", [])]
            if folder.is_dir() and (inside := sorted(_runs_below(folder))):
                return inside
    with contextlib.suppress(CheckpointError):
        return [find_run(reference, root)[0].path]
    runs = [_read(folder) for folder in sorted(_runs_below(root))]
    for key in ("group", "experiment"):
        if tracked := [run.folder for run in runs if run.tracked_as(key) == reference]:
            return tracked
    known = {run.name for run in runs} | {run.tracked_as(key) for run in runs for key in ("group", "experiment")} - {""}
    raise ConfigError(
        f"no run, folder of runs, group or experiment '{reference}' in {root}{nearest(reference, known)}: "
        + (f"there are {', '.join(sorted(known))}" if known else "there are no runs")
        + " (another folder is chosen with run.dir=DIR)"
    )


def _runs_below(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Run folders under a folder, those of a grid below it too; not the copies of results among MLflow's artifacts."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if (child / "run.json").is_file():
            yield child
        elif child.is_dir() and depth > 1:
            yield from _runs_below(child, depth - 1)


def _read(folder: Path) -> Found:
    result, config = results.read(folder), None
    if result is not None:
        return Found(folder, result, result.config)
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return Found(folder, None, config if isinstance(config, dict) else {})


def one_of_each(values: Sequence[Any], shown: Callable[[Any], str] = str) -> str:
    """Values for a sentence, each once: ``a``, ``a and b``, ``a, b and c``."""
    words = list(dict.fromkeys(shown(value) for value in values))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""

"""``stormlit ablate``: a grid of runs by one command, which goes on where it was when it is given again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from stormlit.errors import ConfigError, StormlitError, TrainingError, counted
from stormlit.reports.write import write_report
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.signals import Stopped, StopSignals
from stormlit.sweeps import launchers
from stormlit.sweeps.cells import Cell, cells_of, check, last_lines, one_of_each, seconds_of
from stormlit.sweeps.grid import Grid, read_grid
from stormlit.sweeps.grid_file import Record
from stormlit.sweeps.launch import Launcher
from stormlit.sweeps.parent import REPORT, parent_run
from stormlit.sweeps.scheduler import Board, run_all
from stormlit.sweeps.table import Table, summary

LAST_LINES = 6  # of a failed cell's log


def ablate(
    files: Sequence[str],
    overrides: Sequence[str],
    vary: Sequence[str],
    seeds: str | None,
    name: str | None,
    dry_run: bool,
) -> str:
    """Run what is not finished of a grid; returns what came out, or with ``dry_run`` what would be run.

    Raises ``ConfigError`` before anything is written, ``TrainingError`` when cells have failed, and ``Stopped``, with
    all cells saved, when a signal asked for the end.
    """
    words, where = launchers.split(overrides)
    grid = read_grid(files, words, vary, seeds, name)
    cells = cells_of(grid)
    folder = cells[0].folder.parent
    if (folder / "run.json").exists():
        raise ConfigError(f"{folder} is a run: choose another name for the grid with --name NAME")
    record = Record.of(grid, cells, folder)
    launcher, options = launchers.build(where, _on_gpu(cells[0]), max(cell.threads for cell in cells))
    if dry_run:
        return _plan(grid, cells, record, launcher)
    board = Board.of(cells)
    check(board.waiting)
    launcher.open()
    try:
        with exclusive(RunDirectory(folder), "a grid of that name is running"):
            record.write()
            with parent_run(cells[0].config, record) as further:
                board.waiting = [dataclasses.replace(cell, words=(*cell.words, *further)) for cell in board.waiting]
                _run(cells, board, launcher, record, options.retries)
                page = _report(record)
                _tell_failed(cells, board)
    finally:
        launcher.close()
    lines = [f"{_head(grid, cells, folder)}: mean returns, +- standard error over seeds", summary(cells)]
    return "\n".join([*lines, *page])


def _run(cells: Sequence[Cell], board: Board, launcher: Launcher, record: Record, retries: int) -> None:
    table = Table(cells, board, launcher.slots)
    with StopSignals() as signals:
        table.draw()
        run_all(board, launcher, record, signals, retries=retries, tell=table.tell, show=table.show)
        table.draw()
    if signals.received:
        raise Stopped(
            signals.received,
            f"with {len(board.finished)} of {len(cells)} cells finished and the others saved; the same command goes on",
        )


def _report(record: Record) -> list[str]:
    """Write a report on what is finished; returns where its page is, nothing where there is none."""
    try:
        files = write_report(
            [str(record.folder)], record.folder.parent, record.folder / REPORT, record.content["base"], []
        )
    except StormlitError as error:  # such as variants that are not comparable: the results are there all the same
        print(f"stormlit: no report was written: {error}", file=sys.stderr)
        return []
    return [f"written to {file}" for file in files[:1]]


def _tell_failed(cells: Sequence[Cell], board: Board) -> None:
    if board.failed:
        for cell, code in board.failed.values():
            print(f"\n{cell.name} failed with code {code}; the end of {cell.log}:", file=sys.stderr)
            for line in last_lines(cell.log)[-LAST_LINES:]:
                print(f"  {line}", file=sys.stderr)
        raise TrainingError(
            f"{len(board.failed)} of {len(cells)} cells failed ({', '.join(board.failed)}), the others are finished; "
            "the same command tries them again"
        )


def _on_gpu(cell: Cell) -> bool:
    return cell.config.accelerator != "cpu" and torch.cuda.is_available()


def _head(grid: Grid, cells: Sequence[Cell], folder: Path) -> str:
    environments = len({cell.environment for cell in cells})
    counts = [(len(grid.variants), "variant"), (environments, "environment"), (len(grid.seeds), "seed")]
    told = " x ".join(counted(number, what) for number, what in counts)
    return f"{grid.name} in {folder}, {told}"


def _plan(grid: Grid, cells: Sequence[Cell], record: Record, launcher: Launcher) -> str:
    """What would be run, and how long it would take."""
    lines = [_head(grid, cells, cells[0].folder.parent), ""]
    width = max(map(len, grid.variants))
    for name, variant in record.content["variants"].items():
        changes = [f"{key}={now} (base {before})" for key, (before, now) in variant["changes"].items()]
        lines.append(f"  {name:<{width}}  {', '.join(changes) or 'the base'}")
    lines.append("")
    board = Board.of(cells)
    todo = {cell.name for cell in board.waiting}
    width = max(len(cell.name) for cell in cells)
    lines += [f"  {cell.name:<{width}}  {'to run' if cell.name in todo else 'finished'}" for cell in cells]
    return "\n".join([*lines, "", _estimate(cells, board.waiting, launcher)])


def _estimate(cells: Sequence[Cell], waiting: Sequence[Cell], launcher: Launcher) -> str:
    """A sentence; a variant that was not timed on an environment is taken to cost as much more there as another."""
    seconds = {(cell.variant, cell.environment): seconds_of(cell) for cell in one_of_each(cells)}
    timed = {where: value for where, value in seconds.items() if value is not None}
    if len(timed) < len(seconds):
        return f"{len(waiting)} cells to run; what trains on a GPU is not timed beforehand"
    first = cells[0].variant, cells[0].environment
    whole = 0.0
    for cell in waiting:
        factor = timed[first[0], cell.environment] / max(timed[first], 1e-9)
        whole += timed.get((cell.variant, cell.environment), timed[cell.variant, first[1]] * factor)
    slots = launcher.slots or len(waiting) or 1
    together = whole / min(slots, max(len(waiting), 1))
    return (
        f"{len(waiting)} cells to run: about {whole / 3600:.2g} hours of updates by timing some of them here, "
        f"{together / 3600:.2g} hours with {slots} at once; playing and evaluating come on top"
    )

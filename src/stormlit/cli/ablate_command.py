"""``stormlit ablate``: a grid of runs by one command, which goes on where it was when it is given again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from stormlit.cli.output import columns
from stormlit.errors import ConfigError, StormlitError, TrainingError, counted
from stormlit.reports.write import write_report
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.signals import Stopped, StopSignals
from stormlit.sweeps import launchers
from stormlit.sweeps.cells import cells_of, check, estimate, last_lines, one_of_each
from stormlit.sweeps.grid import read_grid
from stormlit.sweeps.grid_file import REPORT, Record
from stormlit.sweeps.scheduler import Entry, board_of, run_all, summary

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
    record = Record(grid, cells, folder)
    launcher = launchers.build(where, cells[0].on_gpu, max(cell.threads for cell in cells))
    board = board_of(cells)
    waiting = [entry.cell for entry in board if entry.state == "waiting"]
    counts = (len(grid.variants), "variant"), (len(record.content["environments"]), "environment")
    told = " x ".join(counted(number, what) for number, what in (*counts, (len(grid.seeds), "seed")))
    head = f"{grid.name} in {folder}, {told}"
    if dry_run:
        return "\n".join([head, *_plan(record, board), estimate(cells, waiting, launcher.slots)])
    for cell in one_of_each(waiting):
        check(cell)
    launcher.open()
    try:
        with exclusive(RunDirectory(folder), "a grid of that name is running"):
            record.write()
            with record.parent_run() as further:
                for entry in board:
                    entry.cell = dataclasses.replace(entry.cell, words=(*entry.cell.words, *further))
                with StopSignals() as signals:
                    run_all(board, launcher, record, signals)
                if signals.received:
                    finished = sum(entry.state == "finished" for entry in board)
                    raise Stopped(
                        signals.received,
                        f"with {finished} of {len(board)} cells finished and the others saved; the same command goes "
                        "on",
                    )
                page = _report(record)
                _tell_failed(board)
    finally:
        launcher.close()
    return "\n".join([f"{head}: mean returns, +- standard error over seeds", summary(board), *page])


def _plan(record: Record, board: Sequence[Entry]) -> list[str]:
    """What each variant changes, and which cells are to be run."""
    variants = []
    for name, variant in record.content["variants"].items():
        changes = [f"{key}={now} (base {before})" for key, (before, now) in variant["changes"].items()]
        variants.append([f"  {name}", ", ".join(changes) or "the base"])
    cells = [[f"  {entry.cell.name}", "to run" if entry.state == "waiting" else "finished"] for entry in board]
    return ["", *columns(variants, str.ljust), "", *columns(cells, str.ljust), ""]


def _report(record: Record) -> list[str]:
    """Write a report on what is finished; returns where its page is, nothing where there is none."""
    folder = record.folder
    try:
        page, *_ = write_report([str(folder)], folder.parent, folder / REPORT, record.content["base"], [])
    except StormlitError as error:  # such as variants that are not comparable: the results are there all the same
        print(f"stormlit: no report was written: {error}", file=sys.stderr)
        return []
    return [f"written to {page}"]


def _tell_failed(board: Sequence[Entry]) -> None:
    failed = [entry for entry in board if entry.state == "failed"]
    for entry in failed:
        print(f"\n{entry.cell.name} failed with code {entry.code}; the end of {entry.cell.log}:", file=sys.stderr)
        for line in last_lines(entry.cell.log)[-LAST_LINES:]:
            print(f"  {line}", file=sys.stderr)
    if failed:
        names = ", ".join(entry.cell.name for entry in failed)
        raise TrainingError(
            f"{len(failed)} of {len(board)} cells failed ({names}), the others are finished; "
            "the same command tries them again"
        )

"""Runs the cells of a grid until all are finished, or have failed too often, and shows where every one stands: in a
table that is redrawn on a terminal, in lines elsewhere.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from stormlit.errors import counted
from stormlit.runs.result import Result
from stormlit.runs.signals import STOPPING, StopSignals
from stormlit.sweeps.cells import Cell, last_lines
from stormlit.sweeps.grid_file import Record
from stormlit.sweeps.launchers import Launcher

POLL_SECONDS = 0.2
BAD_INPUT = 2  # an exit code that comes again however often a cell is started
STOPPED = tuple(128 + number for number in STOPPING)  # from outside, with its state saved: no failure
REDRAW_SECONDS, LINES_SECONDS = 1.0, 60.0
# The progress bar's own line, which a cell writes to its log: environment steps, the time left, the latest return.
BAR = re.compile(r"\| (\d+)/\d+ \[[^]]*?(?:([\d:]+) left[^]]*?)?(?:return (\S+?))?(?:]|$)")


@dataclass(eq=False)
class Entry:
    """A cell and where it stands.

    result: once it is finished.  job: the launcher's, once it was started.  attempts: of this command.
    code: with which the last attempt ended.
    """

    cell: Cell
    state: Literal["waiting", "running", "finished", "failed", "stopped"]
    result: Result | None = None
    job: Any = None
    attempts: int = 0
    code: int = 0


def board_of(cells: Sequence[Cell]) -> list[Entry]:
    """Before any is started."""
    found = [(cell, cell.result()) for cell in cells]
    return [Entry(cell, "waiting" if result is None else "finished", result) for cell, result in found]


def run_all(board: Sequence[Entry], launcher: Launcher, record: Record, signals: StopSignals) -> None:
    """Run what waits on the board, and show it; a signal ends all that runs, and returns when it has saved."""
    table, stopping = Table(board, launcher.slots), False
    table.draw()
    while any(entry.state in ("waiting", "running") for entry in board):
        if signals.received and not stopping:
            stopping = True
            for entry in board:
                if entry.state == "waiting":
                    entry.state = "stopped"
                elif entry.state == "running":
                    launcher.stop(entry.job)
        _start(board, launcher, record, table)
        for entry in board:
            if entry.state == "running" and (code := launcher.code(entry.job)) is not None:
                table.tell(entry, _end(entry, code, launcher.retries, stopping))
        table.show()
        time.sleep(POLL_SECONDS)
    table.draw()


def _start(board: Sequence[Entry], launcher: Launcher, record: Record, table: Table) -> None:
    """Start cells while there is room, those first that were tried least, without any that another process trains."""
    for entry in sorted(board, key=lambda entry: entry.attempts):
        running = sum(other.state == "running" for other in board)
        if launcher.slots is not None and running >= launcher.slots:
            return
        # One that runs is left over from a command that died alone; it may end well.
        if entry.state != "waiting" or entry.cell.is_running():
            continue
        entry.result = entry.cell.result()
        if entry.result is not None:
            entry.state = "finished"
            table.tell(entry, "finished by another process")
            continue
        entry.attempts += 1
        record.count_attempt(entry.cell)
        entry.state, entry.job = "running", launcher.start(entry.cell)
        table.tell(entry, "started" if entry.attempts == 1 else "started again")


def _end(entry: Entry, code: int, retries: int, stopping: bool) -> str:
    """Note how a cell's job has ended; returns it in words."""
    entry.code, entry.result = code, entry.cell.result()
    if entry.result is not None or stopping:
        entry.state = "stopped" if entry.result is None else "finished"
        return entry.state
    again = code != BAD_INPUT and entry.attempts <= retries
    if code in STOPPED or entry.cell.is_running():
        entry.attempts -= 1  # that was none
        again = True
    entry.state = "waiting" if again else "failed"
    return f"{'ended' if again else 'failed'} with code {code}"


class Table:
    """Shows a board on stderr.  slots: cells at once."""

    def __init__(self, board: Sequence[Entry], slots: int | None) -> None:
        self._board, self._slots = board, slots
        self._on_terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()
        self._height = 0

    def tell(self, entry: Entry, what: str) -> None:
        """A line where nothing can be redrawn."""
        if not self._on_terminal:
            came_out = f", mean return {mean_return(entry.result):.4g}" if entry.result else ""
            print(f"{entry.cell.name}: {what}{came_out}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Draw the table anew if it is time to."""
        if time.monotonic() - self._shown_at >= (REDRAW_SECONDS if self._on_terminal else LINES_SECONDS):
            self.draw()

    def draw(self) -> None:
        self._shown_at = time.monotonic()
        # Those that run first: a terminal may be too low for all.
        states = ("running", "failed", "finished", "waiting", "stopped") if self._on_terminal else ("running",)
        width = max(len(entry.cell.name) for entry in self._board)
        lines = [self._head(), *(_row(entry, width) for state in states for entry in self._in(state))]
        if self._on_terminal:
            columns, rows = shutil.get_terminal_size()
            lines = [line[: columns - 1] for line in lines[: rows - 1]]
            print(f"\x1b[{self._height}F\x1b[J" if self._height else "", end="", file=sys.stderr)
            self._height = len(lines)
        print("\n".join(lines), file=sys.stderr, flush=True)

    def _in(self, state: str) -> list[Entry]:
        return [entry for entry in self._board if entry.state == state]

    def _head(self) -> str:
        """How many cells are where, and the time to come by what the finished ones took."""
        counts = {state: len(self._in(state)) for state in ("finished", "running", "waiting", "failed", "stopped")}
        told = ", ".join(f"{number} {state}" for state, number in counts.items() if number or state == "finished")
        took = [entry.result.cost["wall_seconds"] for entry in self._board if entry.result is not None]
        to_come = counts["running"] + counts["waiting"]
        if took and to_come:
            seconds = float(np.mean(took)) * to_come / (self._slots or to_come)
            told += f"; about {tqdm.format_interval(seconds)} to come"
        return f"{len(self._board)} cells: {told}"


def _row(entry: Entry, width: int) -> str:
    state, steps, latest, left = entry.state, "", "", ""
    if entry.result is not None:
        steps, latest = f"{entry.result.env_steps:,}", f"{mean_return(entry.result):.4g}"
    elif state == "running" and (bar := last_bar(last_lines(entry.cell.log, 2000))):
        steps, left, latest = (
            f"{int(bar[1]):,}/{entry.cell.config.loop.env_steps:,}",
            f"{bar[2]} left" if bar[2] else "",
            bar[3] or "",
        )
    told = f"failed ({entry.code})" if state == "failed" else state
    return f"  {entry.cell.name:<{width}}  {told:<11} {steps:>17}  {latest and 'return ' + latest:<14} {left}".rstrip()


def last_bar(lines: Sequence[str]) -> re.Match[str] | None:
    """What the last progress bar among lines says."""
    return next((bar for line in reversed(lines) if (bar := BAR.search(line))), None)


def mean_return(result: Result) -> float:
    """Of the agent's episodes that have a finite one, else NaN."""
    return float(np.mean([value for value in result.evaluation.get("agent", []) if value is not None] or [np.nan]))


def summary(board: Sequence[Entry]) -> str:
    """For each variant and environment, the mean over the finished seeds with its standard error."""
    groups: dict[tuple[str, str], list[float]] = {}
    for entry in board:
        returns = groups.setdefault((entry.cell.environment, entry.cell.variant), [])
        if entry.result is not None:
            returns.append(mean_return(entry.result))
    width = max(len(variant) for _, variant in groups)
    lines = []
    for (environment, variant), returns in groups.items():
        told = "no seed finished"
        if returns:
            error = f" +- {np.std(returns, ddof=1) / len(returns) ** 0.5:.2f}" if len(returns) > 1 else ""
            told = f"{np.mean(returns):10.2f}{error} ({counted(len(returns), 'seed')})"
        lines.append(f"  {environment}  {variant:<{width}} {told}")
    return "\n".join(lines)

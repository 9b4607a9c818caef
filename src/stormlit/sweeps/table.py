"""Where every cell of a grid stands, and what a person sees of it: a table redrawn on a terminal, lines elsewhere."""

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
from stormlit.sweeps.cells import Cell, last_lines

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

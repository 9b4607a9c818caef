"""What a person sees while a grid runs: a table redrawn on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

import numpy as np

from stormlit.errors import counted
from stormlit.runs.result import Result
from stormlit.sweeps.cells import Cell, progress
from stormlit.sweeps.scheduler import Board

REDRAW_SECONDS, LINES_SECONDS = 1.0, 60.0


class Table:
    """Shows a board on stderr.  slots: cells at once."""

    def __init__(self, cells: Sequence[Cell], board: Board, slots: int | None) -> None:
        self._cells, self._board, self._slots = cells, board, slots
        self._on_terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()
        self._height = 0
        self._results: dict[str, Result] = {}  # of finished cells, each read once

    def tell(self, what: str, cell: Cell) -> None:
        """A line where nothing can be redrawn."""
        if not self._on_terminal:
            result = self._result(cell)
            came_out = f", mean return {_mean_return(result):.4g}" if result else ""
            print(f"{cell.name}: {what}{came_out}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Draw the table anew if it is time to."""
        interval = REDRAW_SECONDS if self._on_terminal else LINES_SECONDS
        if time.monotonic() - self._shown_at < interval:
            return
        self._shown_at = time.monotonic()
        self.draw()

    def draw(self) -> None:
        lines = [self._head(), *self._rows()]
        if self._on_terminal:
            columns, rows = shutil.get_terminal_size()
            lines = [line[: columns - 1] for line in lines[: rows - 1]]
            print(f"\x1b[{self._height}F\x1b[J" if self._height else "", end="", file=sys.stderr)
            self._height = len(lines)
        print("\n".join(lines), file=sys.stderr, flush=True)

    def _head(self) -> str:
        board = self._board
        counts = {
            "finished": len(board.finished),
            "running": len(board.running),
            "waiting": len(board.waiting),
            "failed": len(board.failed),
        }
        told = ", ".join(f"{number} {state}" for state, number in counts.items() if number or state == "finished")
        return f"{len(self._cells)} cells: {told}{self._left()}"

    def _left(self) -> str:
        """The time to come, by what the finished ones took."""
        took = [result.cost["wall_seconds"] for cell in self._board.finished if (result := self._result(cell))]
        open_ones = len(self._board.running) + len(self._board.waiting)
        if not took or not open_ones:
            return ""
        return f"; about {_clock(float(np.mean(took)) * open_ones / (self._slots or open_ones))} to come"

    def _rows(self) -> list[str]:
        """Those that run first: a terminal may be too low for all."""
        width = max(len(cell.name) for cell in self._cells)
        rows = [_row(width, cell, "running", *self._running(cell)) for cell, _ in self._board.running.values()]
        if not self._on_terminal:
            return rows
        rows += [_row(width, cell, f"failed ({code})", "", "", "") for cell, code in self._board.failed.values()]
        rows += [_row(width, cell, "finished", *self._finished(cell)) for cell in self._board.finished]
        return rows + [_row(width, cell, "waiting", "", "", "") for cell in self._board.waiting]

    def _running(self, cell: Cell) -> tuple[str, str, str]:
        seen = progress(cell.log)
        steps = "" if seen.env_steps is None else f"{seen.env_steps:,}/{cell.wanted:,}"
        return steps, seen.latest_return, seen.left and f"{seen.left} left"

    def _finished(self, cell: Cell) -> tuple[str, str, str]:
        result = self._result(cell)
        return ("", "", "") if result is None else (f"{result.env_steps:,}", f"{_mean_return(result):.4g}", "")

    def _result(self, cell: Cell) -> Result | None:
        if cell.name not in self._results and (found := cell.result()) is not None:
            self._results[cell.name] = found
        return self._results.get(cell.name)


def _row(width: int, cell: Cell, state: str, steps: str, latest: str, left: str) -> str:
    return f"  {cell.name:<{width}}  {state:<11} {steps:>17}  {latest and 'return ' + latest:<14} {left}".rstrip()


def _mean_return(result: Result) -> float:
    """Of the agent's episodes that have a finite one, else NaN."""
    return float(np.mean([value for value in result.evaluation.get("agent", []) if value is not None] or [np.nan]))


def summary(cells: Sequence[Cell]) -> str:
    """For each variant and environment, the mean over the finished seeds with its standard error."""
    groups: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        scores = groups.setdefault((cell.environment, cell.variant), [])
        result = cell.result()
        if result is not None:
            scores.append(_mean_return(result))
    width = max(len(variant) for _, variant in groups)
    lines = []
    for (environment, variant), scores in groups.items():
        told = "no seed finished"
        if scores:
            error = f" +- {np.std(scores, ddof=1) / len(scores) ** 0.5:.2f}" if len(scores) > 1 else ""
            told = f"{np.mean(scores):10.2f}{error} ({counted(len(scores), 'seed')})"
        lines.append(f"  {environment}  {variant:<{width}} {told}")
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    """
    >>> _clock(75), _clock(7500)
    ('1 min', '2 h 5 min')
    """
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

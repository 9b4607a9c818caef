"""Runs the cells of a grid until all are finished, or have failed too often."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stormlit.runs.signals import STOPPING, StopSignals
from stormlit.sweeps.cells import Cell
from stormlit.sweeps.grid_file import Record
from stormlit.sweeps.launch import Job, Launcher

POLL_SECONDS = 0.2
BAD_INPUT = 2  # an exit code that comes again however often a cell is started
STOPPED = tuple(128 + number for number in STOPPING)  # from outside, with its state saved: no failure


@dataclass
class Board:
    """Where every cell stands: in exactly one of these. failed: with the exit code of the last attempt."""

    waiting: list[Cell] = field(default_factory=list)
    running: dict[str, tuple[Cell, Job]] = field(default_factory=dict)
    finished: list[Cell] = field(default_factory=list)
    failed: dict[str, tuple[Cell, int]] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)  # of this command

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Board:
        board = cls()
        for cell in cells:
            (board.waiting if cell.result() is None else board.finished).append(cell)
        return board


Tell = Callable[[str, Cell], None]
"""Called with what has happened to a cell, in a word or two."""


def run_all(
    board: Board,
    launcher: Launcher,
    record: Record,
    signals: StopSignals,
    *,
    retries: int,
    tell: Tell,
    show: Callable[[], None],
) -> None:
    """Run what waits on the board; a signal ends all that runs, and returns when it has saved.

    retries: how often a cell that has failed is started again.  show: called several times a second.
    """
    while board.running or board.waiting:
        if signals.received:
            board.waiting.clear()
            for _, job in board.running.values():
                job.stop()
            _wait_for_end(board, tell, show)
            return
        _start(board, launcher, record, tell)
        _collect(board, retries, tell)
        show()
        if board.running or board.waiting:
            time.sleep(POLL_SECONDS)


def _start(board: Board, launcher: Launcher, record: Record, tell: Tell) -> None:
    """Start cells while there is room, leaving out those that another process trains at this moment."""
    for cell in list(board.waiting):
        if launcher.slots is not None and len(board.running) >= launcher.slots:
            return
        if cell.is_running():  # left over from a command that died alone; it may end well
            continue
        board.waiting.remove(cell)
        if cell.result() is not None:
            board.finished.append(cell)
            tell("finished by another process", cell)
            continue
        board.attempts[cell.name] = board.attempts.get(cell.name, 0) + 1
        record.count_attempt(cell)
        board.running[cell.name] = cell, launcher.start(cell)
        tell("started" if board.attempts[cell.name] == 1 else "started again", cell)


def _collect(board: Board, retries: int, tell: Tell) -> None:
    """Take what has ended off the running ones."""
    for name, (cell, job) in list(board.running.items()):
        code = job.code()
        if code is None:
            continue
        del board.running[name]
        if cell.result() is not None:
            board.finished.append(cell)
            tell("finished", cell)
        elif code in STOPPED or cell.is_running():
            board.attempts[name] -= 1
            board.waiting.append(cell)
        elif code != BAD_INPUT and board.attempts[name] <= retries:
            board.waiting.append(cell)
            tell(f"ended with code {code}", cell)
        else:
            board.failed[name] = cell, code
            tell(f"failed with code {code}", cell)


def _wait_for_end(board: Board, tell: Tell, show: Callable[[], None]) -> None:
    while board.running:
        for name, (cell, job) in list(board.running.items()):
            if job.code() is not None:
                del board.running[name]
                if cell.result() is not None:
                    board.finished.append(cell)
                tell("finished" if cell.result() is not None else "stopped", cell)
        show()
        time.sleep(POLL_SECONDS)

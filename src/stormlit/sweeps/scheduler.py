"""Runs the cells of a grid until all are finished, or have failed too often."""

from __future__ import annotations

import time
from collections.abc import Sequence

from stormlit.runs.signals import STOPPING, StopSignals
from stormlit.sweeps.grid_file import Record
from stormlit.sweeps.launchers import Launcher
from stormlit.sweeps.table import Entry, Table

POLL_SECONDS = 0.2
BAD_INPUT = 2  # an exit code that comes again however often a cell is started
STOPPED = tuple(128 + number for number in STOPPING)  # from outside, with its state saved: no failure


def run_all(board: Sequence[Entry], launcher: Launcher, record: Record, signals: StopSignals, table: Table) -> None:
    """Run what waits on the board; a signal ends all that runs, and returns when it has saved."""
    queue, stopping = list(board), False
    while any(entry.state in ("waiting", "running") for entry in queue):
        if signals.received and not stopping:
            stopping = True
            for entry in queue:
                if entry.state == "waiting":
                    entry.state = "stopped"
                elif entry.state == "running":
                    launcher.stop(entry.job)
        _start(queue, launcher, record, table)
        _collect(queue, launcher, table, stopping)
        table.show()
        time.sleep(POLL_SECONDS)


def _start(queue: Sequence[Entry], launcher: Launcher, record: Record, table: Table) -> None:
    """Start cells while there is room, leaving out those that another process trains at this moment."""
    for entry in queue:
        running = sum(other.state == "running" for other in queue)
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


def _collect(queue: list[Entry], launcher: Launcher, table: Table, stopping: bool) -> None:
    """Take note of what has ended; what is to be started again goes behind what waits already."""
    for entry in [entry for entry in queue if entry.state == "running"]:
        code = launcher.code(entry.job)
        if code is None:
            continue
        entry.code, entry.result = code, entry.cell.result()
        if entry.result is not None:
            entry.state, what = "finished", "finished"
        elif stopping:
            entry.state, what = "stopped", "stopped"
        else:
            if code in STOPPED or entry.cell.is_running():
                entry.attempts -= 1  # that was none
                again = True
            else:
                again = code != BAD_INPUT and entry.attempts <= launcher.retries
            entry.state, what = ("waiting", "ended") if again else ("failed", "failed")
            what += f" with code {code}"
            if again:
                queue.remove(entry)
                queue.append(entry)
        table.tell(entry, what)

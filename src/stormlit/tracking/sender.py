"""A thread that brings a spool to the store, however often the store fails."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from stormlit.errors import ConfigError
from stormlit.tracking.base import warn
from stormlit.tracking.spool import LANES, Backlog, Entry, Spool

POINTS_PER_BATCH = 250  # MLflow takes 1000, but a busy server needs seconds for as many
FEWEST_POINTS_PER_BATCH = 50
LONGEST_PAUSE = 60.0  # seconds between two attempts; the first is 1 s
PATIENCE, UPLOAD_PATIENCE = 5.0, 30.0  # seconds without an answer, and without one while a file is uploaded
MOMENT = 0.05


class Store(Protocol):
    """Where a spool is sent to. Entries come twice when an answer was lost: the second time must change nothing."""

    where: str  # for messages

    def send(self, entries: list[Entry]) -> None:
        """Take several calls of ``log``, or one entry of another kind; raises anything when that fails."""
        ...


def send_all(spool: Spool, store: Store, sent: Backlog) -> None:
    """Send everything that is pending, counting it in ``sent``; raises what the store raises."""
    for lane in LANES:
        for entries, position in spool.pending(lane, POINTS_PER_BATCH):
            if entries:
                store.send(entries)
            spool.mark_sent(lane, position)
            sent.count(entries)


@dataclass(slots=True)
class _Lane:
    name: str
    failures: int = 0  # in a row
    last_try: float = -math.inf  # on the monotonic clock


class Sender:
    """Sends what is in the spool every ``interval`` seconds, in a daemon thread that alone calls the store.

    After a failure it waits 1 s, then twice as long each time, up to a minute. Whatever is raised stays in the thread.
    """

    def __init__(self, spool: Spool, store: Store, interval: float) -> None:
        self._spool, self.store = spool, store
        self.refusal: ConfigError | None = None  # the last failure, if no waiting mends it
        self._interval = max(interval, MOMENT)
        self._lanes = [_Lane(name) for name in LANES]
        self._wake = threading.Event()
        self._stopped = self._uploading = False
        self._draining_since: float | None = None
        self._answered = 0.0
        self._thread = threading.Thread(target=self._run, name="stormlit-sender", daemon=True)
        self._thread.start()

    def drain(self, at_most: float = 30.0) -> bool:
        """Wait until everything is sent, and return whether it is.

        Gives up when the store has not answered for a few seconds, or after ``at_most`` seconds.
        """
        began = self._answered = self._draining_since = time.monotonic()
        self._wake.set()
        while not self._spool.all_sent():
            patience = UPLOAD_PATIENCE if self._uploading else PATIENCE
            now = time.monotonic()
            if now - self._answered > patience or now - began > at_most:
                break
            time.sleep(MOMENT / 5)
        self._draining_since = None
        return self._spool.all_sent()

    def stop(self) -> None:
        """End the thread; one that hangs in a call ends after it."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=0.5)

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(max(0.0, min(self._next_try(lane) for lane in self._lanes) - time.monotonic()))
            self._wake.clear()
            for lane in self._lanes:
                if time.monotonic() >= self._next_try(lane) and not self._stopped:
                    self._serve(lane)

    def _next_try(self, lane: _Lane) -> float:
        # Asked for each time, never kept: ``drain`` may come while a lane is served, and must not find it asleep after.
        since = self._draining_since
        if since is None:
            pause = min(LONGEST_PAUSE, 2.0 ** min(lane.failures - 1, 10)) if lane.failures else self._interval
        elif lane.last_try < since:
            return since
        else:
            pause = 0.5 if lane.failures else MOMENT
        return lane.last_try + pause

    def _serve(self, lane: _Lane) -> None:
        """Send what is pending on a lane."""
        # To a store so slow that a large batch outlasts the time limit, smaller ones get through.
        points_at_most = max(FEWEST_POINTS_PER_BATCH, POINTS_PER_BATCH >> lane.failures)
        try:
            for entries, position in self._spool.pending(lane.name, points_at_most):
                if self._stopped:
                    return
                if entries:
                    self._uploading = "artifact" in entries[0] and lane.failures == 0
                    self.store.send(entries)
                    self._answered = time.monotonic()
                    if lane.failures:
                        warn("%s answers again: the %s kept since are sent", self.store.where, lane.name)
                    lane.failures, self.refusal = 0, None
                self._spool.mark_sent(lane.name, position)
        except Exception as error:  # whatever the store's fault, training goes on and the thread lives
            if lane.failures == 0:
                warn("%s does not take %s, they are kept for later: %s", self.store.where, lane.name, first_line(error))
            lane.failures += 1
            self.refusal = error if isinstance(error, ConfigError) else None
        finally:
            self._uploading = False
            lane.last_try = time.monotonic()


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

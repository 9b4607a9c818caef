"""What a tracker was given, in a file beside the run, and the thread that sends it to a store.

A spool is two files:

    RUN_ID.spool   one line an entry: the CRC-32 of the rest in hexadecimal, a space, a JSON object
    RUN_ID.sent    one such line with the bytes of the spool that each lane has sent

Entries, in the order in which they happened:

    {"begin": PARAMS, "experiment": NAME, "store": WHERE}   a new run; WHERE: the key or variable that named its store
    {"resume": PARAMS, "tags": TAGS}                        the run goes on
    {"points": {KEY: VALUE}, "step": S, "time": T}          one call of ``log``; T in Unix milliseconds, fixed for good
    {"artifact": PATH, "folder": FOLDER}    a file or folder to keep; PATH relative to the run's folder if inside
    {"end": STATUS, "time": T}              the run is over

A value that is not finite, for which JSON has no number, is the text "nan", "inf" or "-inf".

Artifacts have a lane of their own, so that a server without a place for files still gets the metrics.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from stormlit.errors import first_line
from stormlit.tracking.base import warn

Entry = dict[str, Any]

LANES = ("records", "artifacts")
POINTS_PER_BATCH = 250  # MLflow takes 1000, but a busy server needs seconds for as many
LONGEST_PAUSE = 60.0  # seconds between two attempts; the first is 1 s
LAST_PAUSES = (0.0, 1.0, 2.0)  # seconds before each attempt to send the rest of a run that has ended


class Journal:
    """A file that only grows, by whole lines and from any thread.

    Every line is with the operating system when ``write`` returns, so a killed process loses none; ``sync`` makes them
    survive a power failure too. A line torn by a crash is closed off, so that it does not spoil the next.

    unwritten: what a full disk has refused so far; a later call writes it, so that no line is torn.
    size: bytes of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten = b""
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self.size = self._file.seek(0, os.SEEK_END)
        if self.size and os.pread(self._file.fileno(), 1, self.size - 1) != b"\n":
            with contextlib.suppress(OSError):
                self.write(b"\n")

    def write(self, lines: bytes) -> None:
        """Write lines, after those that were refused before; raises ``OSError`` when the disk refuses."""
        with self._lock:
            self.unwritten += lines
            while self.unwritten:
                written = self._file.write(self.unwritten)
                self.unwritten = self.unwritten[written:]
                self.size += written

    def sync(self) -> None:
        """Raises ``OSError``."""
        self.write(b"")
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Spool(Journal):
    """A journal of entries that hands out those that are still to be sent.

    ``append`` may be called from any thread; ``pending`` and ``mark_sent`` from one at a time. Damaged lines are
    skipped, with a warning that names the file and the byte.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._damaged: set[int] = set()
        self._positions_file = path.with_suffix(".sent")
        found = _decode(self._positions_file.read_bytes()) if self._positions_file.exists() else None
        self._sent = {lane: (found or {}).get(lane, 0) for lane in LANES}
        if max(self._sent.values()) > self.size:  # a power failure has cut the spool: the bytes to come are not sent
            self._sent = dict.fromkeys(LANES, 0)

    def append(self, entry: Entry) -> None:
        """Write one entry; what the disk refuses is told once, and kept in memory until it takes it."""
        refused_before = bool(self.unwritten)
        try:
            self.write(_encode(entry))
        except OSError as error:
            if not refused_before:
                warn("%s cannot be written, metrics are kept in memory: %s", self.path, error.strerror)

    def entries(self) -> Iterator[Entry]:
        """Everything in the spool, sent or not."""
        return (entry for entry, _ in self._read(0) if entry is not None)

    def pending(self, lane: str) -> Iterator[tuple[list[Entry], int]]:
        """What is still to be sent on a lane: entries, and the position to give to ``mark_sent`` once they are.

        Calls of ``log`` come together up to a number of points, anything else alone. The last list may be empty.
        """
        batch: list[Entry] = []
        points, end = 0, self._sent[lane]
        for entry, after in self._read(end):
            if entry is not None and ("artifact" in entry) == (lane == "artifacts"):
                size = len(entry["points"]) if "points" in entry else POINTS_PER_BATCH
                if batch and points + size > POINTS_PER_BATCH:
                    yield batch, end
                    batch, points = [], 0
                batch.append(entry)
                points += size
            end = after
        if end > self._sent[lane]:
            yield batch, end

    def mark_sent(self, lane: str, position: int) -> None:
        """Remember that everything before ``position`` is done on a lane. Where that fails, entries only go twice."""
        self._sent[lane] = position
        temporary = self._positions_file.with_suffix(".sent.tmp")
        with contextlib.suppress(OSError):
            temporary.write_bytes(_encode(self._sent))
            os.replace(temporary, self._positions_file)

    def all_sent(self) -> bool:
        return not self.unwritten and all(position >= self.size for position in self._sent.values())

    def backlog(self) -> str:
        """What has not been sent, in words."""
        return described([entry for lane in LANES for entries, _ in self.pending(lane) for entry in entries])

    def _read(self, position: int) -> Iterator[tuple[Entry | None, int]]:
        """Every whole line from ``position`` on, None where it is damaged, and the position behind it."""
        with self.path.open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written
                position += len(line)
                entry = _decode(line)
                if entry is None and line != b"\n" and position not in self._damaged:
                    self._damaged.add(position)
                    warn("%s: the line that ends at byte %d is damaged and was skipped", self.path, position)
                yield entry, position


class Store(Protocol):
    """Where a spool is sent to. Entries come twice when an answer was lost: the second time must change nothing."""

    where: str  # for messages

    def send(self, entries: list[Entry]) -> None:
        """Take several calls of ``log``, or one entry of another kind; raises anything when that fails."""
        ...


def send_pending(spool: Spool, store: Store, lane: str) -> Iterator[list[Entry]]:
    """Send what is pending on a lane, giving what was sent; raises what the store raises."""
    for entries, position in spool.pending(lane):
        if entries:
            store.send(entries)
        spool.mark_sent(lane, position)
        yield entries


class Sender(threading.Thread):
    """Sends what is in the spool every ``interval`` seconds, and alone calls the store.

    After a failure it waits 1 s, then twice as long each time, up to a minute. Whatever is raised stays in the thread.

    failing: the last error of each lane that fails.
    """

    def __init__(self, spool: Spool, store: Store, interval: float) -> None:
        super().__init__(name="stormlit-sender", daemon=True)
        self.failing: dict[str, Exception] = {}
        self.store = store
        self._spool, self._interval = spool, max(interval, 0.05)
        self._ending = threading.Event()
        self._given_up = False
        self.start()

    def finish(self, at_most: float) -> bool:
        """Send the rest and end the thread; returns whether everything was sent after ``at_most`` seconds.

        A thread that hangs in a call then ends after it.
        """
        self._ending.set()
        self.join(at_most)
        self._given_up = True
        return self._spool.all_sent()

    def run(self) -> None:
        failures = 0
        while not self._ending.wait(self._pause(failures)):
            failures = 0 if self._attempt() else failures + 1
        for pause in LAST_PAUSES:
            time.sleep(pause)
            if self._attempt():
                return

    def _pause(self, failures: int) -> float:
        return float(min(LONGEST_PAUSE, 2 ** (failures - 1))) if failures else self._interval

    def _attempt(self) -> bool:
        """Send what is pending and return whether the store took it; a change of that is told."""
        for lane in LANES:
            try:
                for entries in send_pending(self._spool, self.store, lane):
                    if self._given_up:
                        return True
                    if entries and lane in self.failing:
                        del self.failing[lane]
                        warn("%s answers again: the %s kept since are sent", self.store.where, lane)
            except Exception as error:  # whatever the store's fault, training goes on and the thread lives
                if lane not in self.failing:
                    warn("%s does not take %s, they are kept for later: %s", self.store.where, lane, first_line(error))
                self.failing[lane] = error
        return not self.failing


def described(entries: Sequence[Entry]) -> str:
    """How much that is, for a person; "" for nothing that one would miss."""
    points = sum(len(entry.get("points", ())) for entry in entries)
    artifacts = sum("artifact" in entry for entry in entries)
    counted = [f"{points:,} metric points"] * (points > 0) + [f"{artifacts:,} artifacts"] * (artifacts > 0)
    return ", ".join(counted + ["the run's status"] * any("resume" in entry or "end" in entry for entry in entries))


def _encode(entry: Entry) -> bytes:
    text = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Entry | None:
    """The entry of a line, None where the line is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    entry: Entry = json.loads(text)
    return entry

"""What a tracker was given, in a file beside the run, until the store has it too.

A spool is two files:

    RUN_ID.spool   one line an entry: the CRC-32 of the rest in hexadecimal, a space, a JSON object
    RUN_ID.sent    one such line with the bytes of the spool that each lane has sent

Entries, in the order in which they happened:

    {"begin": PARAMS}                             a new run; for the record, the store knows
    {"resume": PARAMS, "tags": TAGS}              the run goes on
    {"points": {KEY: VALUE}, "step": S, "time": T}   one call of ``log``; T in Unix milliseconds, fixed for good
    {"artifact": PATH, "folder": FOLDER}          a file or folder to keep; PATH relative to the run's folder if inside
    {"end": STATUS, "time": T}                    the run is over

Artifacts have a lane of their own, so that a large upload, or a place for files that fails, holds up no metrics.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

LANES = ("records", "artifacts")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Backlog:
    """How much is in a spool, or how much of it was sent.  records: beginnings, continuations and ends of the run."""

    points: int = 0
    artifacts: int = 0
    records: int = 0

    def count(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.points += len(entry.get("points", ()))
            self.artifacts += "artifact" in entry
            self.records += "resume" in entry or "end" in entry

    def __bool__(self) -> bool:
        return bool(self.points or self.artifacts or self.records)

    def __str__(self) -> str:
        counted = [f"{self.points:,} metric points"] * (self.points > 0)
        counted += [f"{self.artifacts:,} artifacts"] * (self.artifacts > 0)
        return ", ".join([*counted, *["the run's status"] * (self.records > 0)]) or "nothing"


class Spool:
    """Appends entries, and hands out those that are still to be sent.

    ``append`` may be called from any thread; ``pending`` and ``mark_sent`` from one at a time. Every entry is with the
    operating system when ``append`` returns, so a killed process loses none; ``sync`` makes them survive a power
    failure too. Lines that are damaged are skipped, with a warning that names the file and the byte.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._positions_file = path.with_suffix(".sent")
        self._lock = threading.Lock()
        self._unwritten = b""  # what a full disk has refused so far
        self._damaged: set[int] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = os.fstat(self._file).st_size
        if not self._begins_a_line(self._size):
            self._write(b"\n")  # a line torn by a crash must not spoil the next
        self._sent = self._read_positions()

    def append(self, entry: Entry) -> None:
        """Write one entry. What the disk refuses is kept in memory, with one warning, and written by a later call."""
        self._write(_encode(entry))

    def sync(self) -> None:
        """Make the disk hold everything appended so far, as far as it can."""
        self._write(b"")
        try:
            os.fsync(self._file)
        except OSError as error:
            _log.warning("%s may not survive a power failure: %s", self.path, error.strerror)

    def close(self) -> None:
        """Later entries are refused as by a full disk, and never end up in whatever file gets the number next."""
        with self._lock:
            os.close(self._file)
            self._file = -1

    def entries(self) -> Iterator[Entry]:
        """Everything in the spool, sent or not."""
        return (entry for entry, _ in self._read(0) if entry is not None)

    def pending(self, lane: str, points_at_most: int) -> Iterator[tuple[list[Entry], int]]:
        """What is still to be sent on a lane: entries, and the position to give to ``mark_sent`` once they are.

        Calls of ``log`` come together as long as they have at most ``points_at_most`` points, anything else alone.
        The last list may be empty: there is nothing for this lane up to that position.
        """
        batch: list[Entry] = []
        points = 0
        end = self._sent[lane]
        for entry, after in self._read(end):
            if entry is not None and ("artifact" in entry) == (lane == "artifacts"):
                if batch and ("points" not in entry or points + len(entry["points"]) > points_at_most):
                    yield batch, end
                    batch, points = [], 0
                if "points" in entry:
                    batch.append(entry)
                    points += len(entry["points"])
                else:
                    yield [entry], after
            end = after
        if end > self._sent[lane]:
            yield batch, end

    def mark_sent(self, lane: str, position: int) -> None:
        """Remember that everything before ``position`` is done on a lane.

        A position that cannot be written down, or is lost in a crash, only makes entries go twice, which changes
        nothing in the store: no reason to fail, or to wait for the disk.
        """
        self._sent[lane] = position
        temporary = self._positions_file.with_suffix(".sent.tmp")
        with contextlib.suppress(OSError):
            temporary.write_bytes(_encode(self._sent))
            os.replace(temporary, self._positions_file)

    def all_sent(self) -> bool:
        return not self._unwritten and all(position >= self._size for position in self._sent.values())

    def backlog(self) -> Backlog:
        """What has not been sent."""
        found = Backlog()
        for lane in LANES:
            for entries, _ in self.pending(lane, points_at_most=1000):
                found.count(entries)
        return found

    def _write(self, line: bytes) -> None:
        with self._lock:
            refused_before = bool(self._unwritten)
            self._unwritten += line
            try:
                while self._unwritten:
                    written = os.write(self._file, self._unwritten)
                    # A line that fits only in part is completed later, so that it is not torn.
                    self._unwritten = self._unwritten[written:]
                    self._size += written
            except OSError as error:
                if not refused_before:
                    _log.warning("%s cannot be written, metrics are kept in memory: %s", self.path, error.strerror)

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
                    _log.warning("%s: the line that ends at byte %d is damaged and was skipped", self.path, position)
                yield entry, position

    def _read_positions(self) -> dict[str, int]:
        """How far each lane is; from the beginning where the file is damaged or not of this spool."""
        nothing = dict.fromkeys(LANES, 0)
        try:
            positions = _decode(self._positions_file.read_bytes())
        except FileNotFoundError:
            return nothing
        if positions is not None and all(self._begins_a_line(positions.get(lane)) for lane in LANES):
            return {lane: positions[lane] for lane in LANES}
        _log.warning("%s is damaged: the whole spool is sent again", self._positions_file)
        return nothing

    def _begins_a_line(self, position: object) -> bool:
        if not isinstance(position, int) or not 0 <= position <= self._size:
            return False
        return position == 0 or os.pread(self._file, 1, position - 1) == b"\n"


def _encode(entry: Entry) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(line: bytes) -> Entry | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None

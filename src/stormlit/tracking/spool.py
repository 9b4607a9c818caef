"""What a tracker was given, in a file beside the run, until the store has it too.

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

Artifacts have a lane of their own, so that a large upload, or a place for files that fails, holds up no metrics.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormlit.tracking.base import warn
from stormlit.tracking.journal import Journal

Entry = dict[str, Any]

LANES = ("records", "artifacts")


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


class Spool(Journal):
    """A journal of entries that hands out those that are still to be sent.

    ``append`` and ``sync`` may be called from any thread; ``pending`` and ``mark_sent`` from one at a time. A disk that
    refuses is told once, by a warning. Damaged lines are skipped, with one that names the file and the byte.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._positions_file = path.with_suffix(".sent")
        self._damaged: set[int] = set()
        self._sent = self._read_positions()

    def append(self, entry: Entry) -> None:
        """Write one entry, or keep it in memory until the disk takes it."""
        self._write(_encode(entry))

    def sync(self) -> None:
        """Make the disk hold everything appended so far, as far as it can."""
        self._write(b"")
        try:
            os.fsync(self._file)
        except OSError as error:
            warn("%s may not survive a power failure: %s", self.path, error.strerror)

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
        return not self.unwritten and all(position >= self.size for position in self._sent.values())

    def backlog(self) -> Backlog:
        """What has not been sent."""
        found = Backlog()
        for lane in LANES:
            for entries, _ in self.pending(lane, points_at_most=1000):
                found.count(entries)
        return found

    def _write(self, line: bytes) -> None:
        refused_before = bool(self.unwritten)
        try:
            self.write(line)
        except OSError as error:
            if not refused_before:
                warn("%s cannot be written, metrics are kept in memory: %s", self.path, error.strerror)

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

    def _read_positions(self) -> dict[str, int]:
        """How far each lane is; from the beginning where the file is damaged or not of this spool."""
        nothing = dict.fromkeys(LANES, 0)
        try:
            positions = _decode(self._positions_file.read_bytes())
        except FileNotFoundError:
            return nothing
        if positions is not None and all(self.begins_a_line(positions.get(lane)) for lane in LANES):
            return {lane: positions[lane] for lane in LANES}
        warn("%s is damaged: the whole spool is sent again", self._positions_file)
        return nothing


def _encode(entry: Entry) -> bytes:
    text = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()
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

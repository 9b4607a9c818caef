"""A file that only grows, a line at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


class Journal:
    """Appends whole lines, from any thread.

    Every line is with the operating system when ``write`` returns, so a killed process loses none; ``sync`` makes them
    survive a power failure too. What the disk refuses is kept in memory and written by a later call: no line is torn.
    A line torn by a crash is closed off, so that it does not spoil the next.  size: bytes of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten = b""  # what a full disk has refused so far
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self.size = os.fstat(self._file).st_size
        if not self.begins_a_line(self.size):
            with contextlib.suppress(OSError):
                self.write(b"\n")

    def write(self, lines: bytes) -> None:
        """Write lines, after those that were refused before; raises ``OSError`` when the disk refuses."""
        with self._lock:
            self.unwritten += lines
            while self.unwritten:
                written = os.write(self._file, self.unwritten)
                self.unwritten = self.unwritten[written:]
                self.size += written

    def sync(self) -> None:
        """Make the disk hold everything written so far; raises ``OSError``."""
        self.write(b"")
        os.fsync(self._file)

    def close(self) -> None:
        """Later lines are refused as by a full disk, and never end up in whatever file gets the number next."""
        with self._lock:
            os.close(self._file)
            self._file = -1

    def begins_a_line(self, position: object) -> bool:
        """Whether ``position`` is a place in the file where a line begins, or would."""
        if not isinstance(position, int) or not 0 <= position <= self.size:
            return False
        return position == 0 or os.pread(self._file, 1, position - 1) == b"\n"

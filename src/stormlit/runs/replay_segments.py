"""A replay buffer's rows on disk, in files that are written once and shared by checkpoints.

    replay/0/000000000000-000000002500.npz    rows 0 to 2500 of process 0's buffer: one array per field, uncompressed

A checkpoint lists the files it needs, with their sizes and SHA-256, in its ``replay-0.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stormlit.errors import CheckpointError
from stormlit.files import npz_headers, replacing, sha256
from stormlit.runs.checkpoint import Segment, check_claims
from stormlit.storm.replay import ReplayBuffer, ReplayRows


class ReplaySegments:
    """One process's files of replay rows.

    folder: where they are.  segments: those of the run as it stands, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments: list[Segment] = []

    def save(self, replay: ReplayBuffer) -> None:
        """Write the rows added since the last segment as a new one; raises ``OSError`` and leaves no part of it."""
        written = self.segments[-1].end if self.segments else 0
        start, end = max(written, replay.total_rows - replay.rows), replay.total_rows
        if start == end:
            return
        path = self.folder / Segment(start, end, 0, "").name
        rows = replay.read(start, end)
        with replacing(path) as file:
            # Straight to the file: in memory the rows would take their size once more.
            np.savez(file, allow_pickle=False, **{name: getattr(rows, name).numpy() for name in ReplayRows.__slots__})
        self.segments.append(Segment(start, end, path.stat().st_size, sha256(path)))

    def index(self, first_row: int) -> dict[str, Any]:
        """What a checkpoint that needs the rows from ``first_row`` on has to know, for JSON."""
        return {"first_row": first_row, "segments": [asdict(item) for item in self.segments if item.end > first_row]}

    def load(self, replay: ReplayBuffer, segments: Sequence[Segment]) -> None:
        """Fill the buffer with the rows its restored counters say it held; later rows on disk are left alone.

        segments: those of a checkpoint, in order, as ``verify`` has found them.
        Raises ``CheckpointError`` when one is missing or does not fit.
        """
        self.segments = list(segments)
        end_row = replay.total_rows
        next_row = end_row - replay.rows
        for segment in self.segments:
            if segment.end <= next_row or segment.first > next_row:
                continue
            rows = _read(self.folder / segment.name, segment.end - segment.first, replay)
            first, last = next_row - segment.first, min(segment.end, end_row) - segment.first
            replay.restore(rows.map(itemgetter(slice(first, last))), segment.first + last)
            next_row = segment.first + last
        replay.total_rows = end_row
        if next_row != end_row:
            raise CheckpointError(f"the replay segment with row {next_row} is missing from {self.folder}")

    def drop_before(self, row: int) -> None:
        """Delete the segments that end before ``row``."""
        for segment in self.segments:
            if segment.end <= row:
                (self.folder / segment.name).unlink(missing_ok=True)
        self.segments = [segment for segment in self.segments if segment.end > row]

    def drop_from(self, row: int) -> None:
        """Delete the files that begin at ``row`` or later, whoever wrote them, and what was left half written."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        for path in self.folder.glob("[0-9]*-*.npz"):
            if int(path.name.partition("-")[0]) >= row:
                path.unlink()
        self.segments = [segment for segment in self.segments if segment.first < row]


def _read(path: Path, count: int, replay: ReplayBuffer) -> ReplayRows:
    """The rows of a segment. Nothing is allocated before every array is known to have the size it should."""
    try:
        check_claims(path)
        claimed = npz_headers(path)
        for name in ReplayRows.__slots__:
            expected = getattr(replay.storage, name)
            wanted = ((count, *expected.shape[1:]), torch.empty(0, dtype=expected.dtype).numpy().dtype)
            if claimed[name] != wanted:
                raise CheckpointError(
                    f"replay segment {path} does not fit this run: '{name}' has another shape or type"
                )
        with np.load(path, allow_pickle=False) as arrays:
            return ReplayRows(*(torch.from_numpy(arrays[name]) for name in ReplayRows.__slots__))
    except CheckpointError:
        raise
    except Exception as error:  # zip, header and key errors of a damaged file
        raise CheckpointError(f"replay segment {path} is damaged and was refused") from error

"""Checkpoints: a folder per step, written beside and then renamed, so that it exists whole or not at all.

    step-000002500/manifest.json    format, step, and size and SHA-256 of every other file of the folder
                   config.yaml      the resolved configuration
                   weights.pt       both modules: all that evaluating, dreaming and loading need
                   training-0.pt    everything else process 0 needs to go on: optimisers, schedules, random states,
                                    environments, acting context
                   replay-0.json    the oldest row of the replay buffer that process 0 needs
    ../../replay/0/000000000000-000000002500.npz   rows of process 0's replay buffer, with zip's own checksums; written
                                                   once, never changed, and shared by the checkpoints

Files hold tensors and built-in types only and are read with ``weights_only=True``: nothing in them is ever executed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stormlit.errors import CheckpointError
from stormlit.replay import ReplayBuffer, ReplayRows
from stormlit.run_directory import RunDirectory, read_json, replacing, write_atomically, write_json

FORMAT = 1


def checkpoint_folder(run: RunDirectory, env_steps: int) -> Path:
    return run.checkpoints / f"step-{env_steps:09d}"


def list_checkpoints(run: RunDirectory) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    return sorted(manifest.parent for manifest in run.checkpoints.glob("step-*/manifest.json"))


def latest_checkpoint(run: RunDirectory) -> Path:
    """The newest complete checkpoint; raises ``CheckpointError`` when the run has none."""
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"run '{run.name}' in {run.root} has no checkpoint yet")
    return found[-1]


class CheckpointWriter:
    """Assembles one checkpoint in a temporary folder; ``commit`` makes it real.

    With several processes each adds its own files, and the first one commits after all are done.
    """

    def __init__(self, run: RunDirectory, env_steps: int) -> None:
        self.run, self.env_steps = run, env_steps
        self.final = checkpoint_folder(run, env_steps)
        self.temporary = self.final.with_name(f".{self.final.name}.tmp")

    def begin(self) -> None:
        """Make the temporary folder anew."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def add(self, name: str, content: bytes) -> None:
        write_atomically(self.temporary / name, content)

    def add_tensors(self, name: str, state: Mapping[str, Any]) -> None:
        """state: nested mappings of tensors and built-in types."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.add(name, buffer.getvalue())

    def commit(self, keep: int) -> Path:
        """Write the manifest, move the folder into place, and delete all but the newest ``keep`` checkpoints."""
        files = {
            os.path.relpath(path, self.temporary): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(self.temporary.iterdir())
        }
        write_json(self.temporary / "manifest.json", {"format": FORMAT, "env_steps": self.env_steps, "files": files})
        discard(self.final)
        os.replace(self.temporary, self.final)
        for stale in list_checkpoints(self.run)[:-keep]:
            discard(stale)
        return self.final


def discard(folder: Path) -> None:
    """Delete a checkpoint, its manifest first, since a folder without one is no checkpoint, however far this gets."""
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def discard_later(run: RunDirectory, newest_kept: Path | None) -> list[str]:
    """Delete a run's checkpoints after ``newest_kept`` (all with None), and unfinished ones; returns their names."""
    for unfinished in run.checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)
    later = [f for f in run.checkpoints.glob("step-*") if newest_kept is None or f.name > newest_kept.name]
    for folder in later:
        discard(folder)
    return sorted(folder.name for folder in later)


def verify(folder: Path) -> dict[str, Any]:
    """Check a checkpoint against its manifest and return the manifest.

    Raises ``CheckpointError`` naming the file that is missing, truncated or changed, or a format newer than this code.
    """
    manifest = read_json(folder / "manifest.json")
    for key, kind in (("format", int), ("env_steps", int), ("files", dict)):
        if not isinstance(manifest.get(key), kind):
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: '{key}' is missing or of the wrong type")
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest['format']}, this stormlit reads up to {FORMAT}: upgrade stormlit"
        )
    for name in ("config.yaml", "weights.pt"):
        if name not in manifest["files"]:
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: it does not list {name}")
    for name, expected in manifest["files"].items():
        if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: it has no size and SHA-256 of {name}")
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"checkpoint file {path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(
                f"checkpoint file {path} is truncated: {path.stat().st_size} bytes instead of {expected['bytes']}"
            )
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"checkpoint file {path} is damaged: its SHA-256 is not the one in manifest.json")
    return manifest


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a file of ``add_tensors`` without executing anything in it; raises ``CheckpointError`` naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of a file that is about to be refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint file {path} is missing") from None
    except Exception as error:  # whatever a mutated file makes the reader raise
        raise CheckpointError(
            f"{path} is not a file of plain tensors and was refused; nothing in it was run"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged: expected named states")
    return state


def load_weights(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load a state dict; raises ``CheckpointError`` with the name of the first tensor that does not fit."""
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise CheckpointError(f"the checkpoint is of another configuration: {what} has no tensor '{name}'")
        found = getattr(state[name], "shape", None)
        if found != tensor.shape:
            raise CheckpointError(
                f"the checkpoint is of another configuration: {what} tensor '{name}' has shape "
                f"{tuple(found or ())}, expected {tuple(tensor.shape)}"
            )
    for name in state:
        if name not in own:
            raise CheckpointError(f"the checkpoint is of another configuration: {what} has no place for '{name}'")
    module.load_state_dict(dict(state))


def save_replay(replay: ReplayBuffer, folder: Path) -> None:
    """Write the rows added since the last segment as a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    oldest = replay.total_rows - replay.rows
    segments = _segments(folder)
    written = max((end for _, end, _ in segments), default=0)
    start = max(written, oldest)
    if start < replay.total_rows:
        rows = replay.read(start, replay.total_rows)
        with replacing(folder / f"{start:012d}-{replay.total_rows:012d}.npz") as file:
            # Straight to the file: in memory the rows would take their size once more.
            np.savez(file, allow_pickle=False, **{name: getattr(rows, name).numpy() for name in ReplayRows.__slots__})


def drop_unneeded_segments(run: RunDirectory, process: int) -> None:
    """Delete the segments of one process that no checkpoint still there needs."""
    needed = [read_json(folder / f"replay-{process}.json")["first_row"] for folder in list_checkpoints(run)]
    for _, end, path in _segments(run.replay / str(process)):
        if needed and end <= min(needed):
            path.unlink(missing_ok=True)


def drop_segments_from(folder: Path, row: int) -> None:
    """Delete the segments that begin at ``row`` or later."""
    for start, _, path in _segments(folder):
        if start >= row:
            path.unlink()


def load_replay(replay: ReplayBuffer, folder: Path) -> None:
    """Fill the buffer with the rows its restored counters say it held; later rows on disk are left alone.

    Raises ``CheckpointError`` when a segment is missing or does not fit.
    """
    end_row = replay.total_rows
    next_row = end_row - replay.rows
    for start, end, path in _segments(folder):
        if start >= end_row or end <= next_row:
            continue
        if start > next_row:
            break
        rows = _read_segment(path, end - start, replay)
        first, last = next_row - start, min(end, end_row) - start
        kept = ReplayRows(*(getattr(rows, name)[first:last] for name in ReplayRows.__slots__))
        replay.restore(kept, start + last)
        next_row = start + last
    replay.total_rows = end_row
    if next_row < end_row:
        raise CheckpointError(f"the replay segment with row {next_row} is missing from {folder}")


def _segments(folder: Path) -> list[tuple[int, int, Path]]:
    """(first row, row after the last, file) of every segment, in order."""
    found = []
    for path in folder.glob("*-*.npz"):
        start, _, end = path.stem.partition("-")
        if start.isdigit() and end.isdigit():
            found.append((int(start), int(end), path))
    return sorted(found)


def _read_segment(path: Path, count: int, replay: ReplayBuffer) -> ReplayRows:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows = ReplayRows(*(torch.from_numpy(arrays[name]) for name in ReplayRows.__slots__))
    except Exception as error:  # zip, header and key errors of a damaged file
        raise CheckpointError(f"replay segment {path} is damaged and was refused") from error
    for name in ReplayRows.__slots__:
        stored, expected = getattr(rows, name), getattr(replay.storage, name)
        if stored.shape != (count, *expected.shape[1:]) or stored.dtype != expected.dtype:
            raise CheckpointError(f"replay segment {path} does not fit this run: '{name}' has another shape or type")
    return rows


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Saving a whole training run and putting it back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stormlit.checkpoint import (
    CheckpointWriter,
    checkpoint_folder,
    discard_later,
    drop_segments_from,
    drop_unneeded_segments,
    latest_checkpoint,
    load_replay,
    load_weights,
    read_tensors,
    save_replay,
    verify,
)
from stormlit.compose import to_yaml
from stormlit.errors import CheckpointError
from stormlit.run_directory import find_run
from stormlit.training import Training


def save_snapshot(training: Training) -> Path:
    """Write a checkpoint of every process at the current step; returns its folder."""
    fabric, process = training.fabric, training.fabric.global_rank
    writer = CheckpointWriter(training.directory, training.progress.env_steps)
    if training.is_main:
        writer.begin()
        writer.add("config.yaml", to_yaml(training.config).encode())
        writer.add_tensors(
            "weights.pt",
            {"world_model": training.world_model.state_dict(), "agent": training.agent.state_dict()},
        )
    fabric.barrier()
    save_replay(training.replay, training.directory.replay / str(process))
    first_row = training.replay.total_rows - training.replay.rows
    writer.add(f"replay-{process}.json", json.dumps({"first_row": first_row}).encode())
    writer.add_tensors(f"training-{process}.pt", training.state_dict())
    fabric.barrier()
    if training.is_main:
        training.tracker.flush()  # a checkpoint that survives a power failure must not be ahead of the metrics
        writer.commit(training.config.checkpoint.keep)
    fabric.barrier()
    drop_unneeded_segments(training.directory, process)
    return checkpoint_folder(training.directory, training.progress.env_steps)


def load_initial_weights(training: Training, reference: str) -> None:
    """Begin with the weights of another run, and nothing else of it; raises ``CheckpointError`` as ``load`` does."""
    directory, folder = find_run(reference, training.directory.root)
    folder = folder or latest_checkpoint(directory)
    verify(folder)
    _load_modules(training, folder)


def _load_modules(training: Training, folder: Path) -> None:
    weights = read_tensors(folder / "weights.pt")
    load_weights(training.world_model, weights.get("world_model", {}), "world_model")
    load_weights(training.agent, weights.get("agent", {}), "agent")


def restore_snapshot(training: Training, folder: Path) -> None:
    """Put a run back where a checkpoint left it. Raises ``CheckpointError`` naming the file that does not fit."""
    manifest = verify(folder)
    process = training.fabric.global_rank
    name = f"training-{process}.pt"
    processes = sum(file.startswith("training-") for file in manifest["files"])
    if processes != training.fabric.world_size:
        raise CheckpointError(
            f"{folder} was written by {processes} processes and cannot go on with {training.fabric.world_size}"
        )
    _load_modules(training, folder)
    state = read_tensors(folder / name)
    try:
        training.load_state_dict(state)
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{folder / name} does not fit this run: {' '.join(str(error).split())}") from error
    load_replay(training.replay, training.directory.replay / str(process))


def forget_other_futures(training: Training, folder: Path | None) -> None:
    """Delete what would contradict the run from here on: checkpoints newer than the one it goes on from and their
    replay rows, or, for a new run (``folder`` None), whatever one that died before its first checkpoint has left.
    """
    directory = training.directory
    if training.is_main:
        dropped = discard_later(directory, folder)
        if dropped:
            print(f"dropped the later checkpoints {', '.join(dropped)}: this makes another future", file=sys.stderr)
    training.fabric.barrier()
    drop_segments_from(directory.replay / str(training.fabric.global_rank), training.replay.total_rows)

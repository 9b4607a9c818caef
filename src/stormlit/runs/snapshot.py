"""Saving a whole training run and putting it back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.fabric import Fabric

from stormlit.config.compose import to_yaml
from stormlit.errors import CheckpointError, SaveError
from stormlit.files import read_json
from stormlit.runs.checkpoint import (
    WholeCheckpoint,
    discard_later,
    list_checkpoints,
    load_weights,
    newest_whole,
    read_tensors,
    set_aside,
    verify,
)
from stormlit.runs.checkpoint_writer import CheckpointWriter
from stormlit.runs.directory import RunDirectory, find_run
from stormlit.runs.replay_segments import Segment, verify_replay
from stormlit.runs.training import Training


@dataclass(frozen=True, slots=True)
class WholeSnapshot:
    """A checkpoint and the replay rows it needs, all of which ``verify_snapshot`` has found whole.

    segments: the files of rows, by the name of the checkpoint's file that lists them.
    """

    checkpoint: WholeCheckpoint
    segments: Mapping[str, Sequence[Segment]]


def verify_snapshot(run: RunDirectory, folder: Path) -> WholeSnapshot:
    """Check all that going on from a checkpoint reads; raises ``CheckpointError`` naming the file that is not whole."""
    checkpoint = verify(folder)
    return WholeSnapshot(checkpoint, verify_replay(checkpoint, run.replay))


def save_snapshot(training: Training) -> Path:
    """Write a checkpoint of every process at the current step; returns its folder.

    Raises ``SaveError``, in every process, when one of them cannot write; the checkpoints before are as they were.
    """
    fabric, process = training.fabric, training.fabric.global_rank
    writer = CheckpointWriter(training.directory, training.progress.env_steps)

    def shared_files() -> None:
        if training.is_main:
            writer.begin()
            writer.add("config.yaml", to_yaml(training.config).encode())
            writer.add_tensors(
                "weights.pt",
                {"world_model": training.world_model.state_dict(), "agent": training.agent.state_dict()},
            )

    def own_files() -> None:
        writer.add_tensors(f"training-{process}.pt", training.state_dict())
        training.segments.save(training.replay)
        first_row = training.replay.total_rows - training.replay.rows
        writer.add(f"replay-{process}.json", json.dumps(training.segments.index(first_row)).encode())
        writer.settle()

    def commit() -> None:
        if training.is_main:
            training.tracker.flush()  # a checkpoint that survives a power failure must not be ahead of the metrics
            writer.commit(training.config.checkpoint.keep, training.run_id)

    try:
        for part in (shared_files, own_files, commit):
            _in_every_process(fabric, part)
    except OSError as error:
        if training.is_main:
            writer.abandon()
        raise SaveError(
            f"the checkpoint at step {training.progress.env_steps:,} could not be written to {training.directory.path} "
            f"({error.strerror or error}); the last good one is kept"
        ) from error
    _drop_unneeded_segments(training)
    training.clock.restart()
    training.saved_at = training.progress.env_steps
    return writer.final


def save_or_go_on(training: Training) -> None:
    """A checkpoint on the way: one that cannot be written is told and counted, and training goes on."""
    try:
        save_snapshot(training)
    except SaveError as error:
        training.progress.failed_checkpoints += 1
        training.clock.restart()  # or every step would try again
        if training.is_main:
            print(f"stormlit: {error}, and training goes on", file=sys.stderr, flush=True)


def _in_every_process(fabric: Fabric, work: Callable[[], None]) -> None:
    """Do it in every process; raises ``OSError`` in all of them when it fails in one."""
    failure = None
    try:
        work()
    except OSError as error:
        failure = error
    failed = failure is not None
    if fabric.world_size > 1:
        flag = torch.tensor(float(failed), device=fabric.device)
        failed = bool(fabric.all_reduce(flag, reduce_op="max"))
    if failed:
        raise failure or OSError("another process of the run could not write")


def _drop_unneeded_segments(training: Training) -> None:
    """Delete the segments of this process that no checkpoint still there needs."""
    needed = []
    for folder in list_checkpoints(training.directory):
        try:
            first_row = read_json(folder / f"replay-{training.fabric.global_rank}.json")["first_row"]
        except (CheckpointError, KeyError):
            return  # damaged: nobody knows what it needs
        needed.append(first_row)
    if needed and all(isinstance(row, int) for row in needed):
        training.segments.drop_before(min(needed))


def load_initial_weights(training: Training, reference: str) -> None:
    """Begin with the weights of another run, and nothing else of it; raises ``CheckpointError`` as ``load`` does."""
    directory, folder = find_run(reference, training.directory.root)
    checkpoint = newest_whole(directory, verify)[0] if folder is None else verify(folder)
    _load_modules(training, checkpoint)


def _load_modules(training: Training, checkpoint: WholeCheckpoint) -> None:
    weights = read_tensors(checkpoint.folder / "weights.pt")
    load_weights(training.world_model, weights.get("world_model", {}), "world_model")
    load_weights(training.agent, weights.get("agent", {}), "agent")


def restore_snapshot(training: Training, snapshot: WholeSnapshot) -> None:
    """Put a run back where a checkpoint left it. Raises ``CheckpointError`` naming the file that does not fit."""
    folder, files = snapshot.checkpoint.folder, snapshot.checkpoint.manifest["files"]
    process = training.fabric.global_rank
    name, rows = f"training-{process}.pt", f"replay-{process}.json"
    processes = sum(file.startswith("training-") for file in files)
    if processes != training.fabric.world_size:
        raise CheckpointError(
            f"{folder} was written by {processes} processes and cannot go on with {training.fabric.world_size}"
        )
    for needed in (name, rows):
        if needed not in files:  # such a file was not verified either
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: it does not list {needed}")
    _load_modules(training, snapshot.checkpoint)
    state = read_tensors(folder / name)
    try:
        training.load_state_dict(state)
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{folder / name} does not fit this run: {' '.join(str(error).split())}") from error
    training.segments.load(training.replay, snapshot.segments[rows])
    training.saved_at = training.progress.env_steps


def forget_other_futures(training: Training, folder: Path | None, damaged: Sequence[Path] = ()) -> None:
    """Remove what would contradict the run from here on: checkpoints newer than the one it goes on from and their
    replay rows, or, for a new run (``folder`` None), whatever one that died before its first checkpoint has left.

    damaged: newer checkpoints that could not be used; they are kept aside, under another name.
    """
    directory = training.directory
    if training.is_main:
        for unusable in damaged:
            print(f"kept the damaged checkpoint {unusable.name} as {set_aside(unusable).name}", file=sys.stderr)
        dropped = discard_later(directory, folder)
        if dropped:
            print(f"dropped the later checkpoints {', '.join(dropped)}: this makes another future", file=sys.stderr)
    training.fabric.barrier()
    training.segments.drop_from(training.replay.total_rows)

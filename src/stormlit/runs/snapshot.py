"""Saving a whole training run and putting it back."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stormlit.config.compose import to_yaml
from stormlit.errors import CheckpointError, ElsewhereError, MisfitError, SaveError
from stormlit.files import read_json
from stormlit.runs.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    best_checkpoint,
    discard_later,
    list_checkpoints,
    load_modules,
    read_tensors,
    set_aside,
)
from stormlit.runs.run import Run

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def save_snapshot(run: Run) -> Path:
    """Write a checkpoint of every process at the current step; returns its folder.

    Raises ``SaveError``, in every process, when one of them cannot write; the checkpoints before are as they were.
    """
    training, process = run.training, run.training.fabric.global_rank
    writer = CheckpointWriter(run.directory, run.env_steps)

    def shared_files() -> None:
        if training.is_main:
            writer.begin(to_yaml(run.config), training.world_model, training.agent)

    def own_files() -> None:
        writer.add_tensors(f"training-{process}.pt", run.state_dict())
        run.segments.save(training.replay)
        first_row = training.replay.total_rows - training.replay.rows
        writer.add(f"replay-{process}.json", json.dumps(run.segments.index(first_row)).encode())

    def commit() -> None:
        if training.is_main:
            run.tracker.flush()  # a checkpoint that survives a power failure must not be ahead of the metrics
            times = {"started": run.started, "wall_seconds": run.wall_seconds}  # measured: no part of the state
            writer.commit(run.config.checkpoint.keep, run.run_id, **times)

    try:
        for part in (shared_files, own_files, commit):
            _in_every_process(training.fabric, part, OSError("another process of the run could not write"))
    except OSError as error:
        raise SaveError(
            f"the checkpoint at step {run.env_steps:,} could not be written to {run.directory.path} "
            f"({error.strerror or error}); the last good one is kept"
        ) from error
    finally:
        if training.is_main:
            writer.abandon()
    _drop_unneeded_segments(run)
    run.clock.restart()
    run.saved_at = run.env_steps
    return writer.final


def save_or_go_on(run: Run) -> None:
    """A checkpoint on the way: one that cannot be written is reported and counted, and training goes on."""
    try:
        save_snapshot(run)
    except SaveError as error:
        run.training.progress.failed_checkpoints += 1
        run.clock.restart()  # or every step would try again
        if run.training.is_main:
            print(f"stormlit: {error}, and training goes on", file=sys.stderr, flush=True)


def keep_if_best(run: Run, mean: float) -> None:
    """Keep the weights of this step if no earlier evaluation had such a mean return; raises ``OSError``."""
    known = best_checkpoint(run.directory)
    if not math.isfinite(mean) or (known is not None and known[1] >= mean):
        return
    writer = CheckpointWriter(run.directory, run.env_steps, "best")
    try:
        writer.begin(to_yaml(run.config), run.training.world_model, run.training.agent)
        writer.commit(run.config.checkpoint.keep, run.run_id, mean_return=mean)
    finally:
        writer.abandon()


def _in_every_process(fabric: Fabric, work: Callable[[], None], elsewhere: Exception) -> None:
    """Do it in every process; raises in all of them when it fails in one: its own error, or ``elsewhere``."""
    failure = None
    try:
        work()
    except Exception as error:  # of whatever kind: the others wait
        failure = error
    failed = failure is not None
    if fabric.world_size > 1:
        flag = torch.tensor(float(failed), device=fabric.device)
        failed = bool(fabric.all_reduce(flag, reduce_op="max"))
    if failed:
        raise failure or elsewhere


def _drop_unneeded_segments(run: Run) -> None:
    """Delete the segments of this process that no checkpoint still there needs."""
    needed = []
    for folder in list_checkpoints(run.directory):
        try:
            first_row = read_json(folder / f"replay-{run.training.fabric.global_rank}.json")["first_row"]
        except (CheckpointError, KeyError):
            return  # damaged: what it needs is unknown
        needed.append(first_row)
    if needed and all(isinstance(row, int) for row in needed):
        run.segments.drop_before(min(needed))


def restore_snapshot(run: Run, checkpoint: Checkpoint) -> None:
    """Put a run back where a checkpoint left it, in every process or in none.

    Raises ``CheckpointError`` naming the file that does not fit.
    """
    elsewhere = ElsewhereError(f"another process cannot go on from {checkpoint.folder}")
    _in_every_process(run.training.fabric, lambda: _restore(run, checkpoint), elsewhere)


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    folder, files = checkpoint.folder, checkpoint.manifest["files"]
    training, process = run.training, run.training.fabric.global_rank
    name, rows = f"training-{process}.pt", f"replay-{process}.json"
    processes = sum(file.startswith("training-") for file in files)
    if processes == 0:
        raise CheckpointError(
            f"{folder} holds weights only: it can be evaluated and loaded, a run cannot go on from it"
        )
    if processes != training.fabric.world_size:
        raise CheckpointError(
            f"{folder} was written by {processes} processes and cannot go on with {training.fabric.world_size}"
        )
    for needed in (name, rows):
        if needed not in files:  # such a file was not verified either
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: it does not list {needed}")
    load_modules(checkpoint, training.world_model, training.agent)
    state = read_tensors(folder / name)
    try:
        run.load_state_dict(state)
        run.started = str(checkpoint.manifest["started"])
        run.began -= float(checkpoint.manifest["wall_seconds"])
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise MisfitError(f"{folder / name} does not fit this run: {' '.join(str(error).split())}") from error
    run.segments.load(training.replay, checkpoint.segments[rows])
    run.saved_at = run.env_steps


def discard_newer_than(run: Run, folder: Path | None, damaged: Sequence[Path] = ()) -> None:
    """Remove what would contradict the run from here on: checkpoints newer than the one it goes on from and their
    replay rows, or, for a new run (``folder`` None), whatever one that died before its first checkpoint has left.

    damaged: newer checkpoints that could not be used; they are kept aside, under another name.
    """
    if run.training.is_main:
        for unusable in damaged:
            print(f"kept the damaged checkpoint {unusable.name} as {set_aside(unusable).name}", file=sys.stderr)
        dropped = discard_later(run.directory, folder)
        for file in run.directory.evaluation.glob("step-?????????.json"):
            if folder is None or file.stem > folder.name:
                file.unlink(missing_ok=True)
        if dropped:
            print(f"dropped the later checkpoints {', '.join(dropped)}: this makes another future", file=sys.stderr)
    run.training.fabric.barrier()
    run.segments.drop_from(run.training.replay.total_rows)

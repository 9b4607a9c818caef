"""Going on with a run: from which checkpoint, with which configuration, and whether there is anything left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.errors import ConfigError
from stormlit.runs.allowed_changes import changed_configuration, refuse_other_configuration
from stormlit.runs.checkpoint import find_checkpoint, list_checkpoints, newest_valid
from stormlit.runs.device import make_fabric
from stormlit.runs.directory import RunDirectory, find_run, refuse_if_training
from stormlit.runs.snapshot import VerifiedSnapshot, verify_snapshot
from stormlit.runs.train import new_run, plain_name, train_run


def resume_run(reference: str, root: Path, overrides: Sequence[str]) -> None:
    """Go on with a run from its newest checkpoint that is whole, or from the one that is named."""
    refuse_if_training(find_run(reference, root)[0])
    directory, snapshot, damaged = find_checkpoint(reference, root, verify_snapshot)
    with changed_configuration(snapshot.checkpoint.folder, directory, overrides) as config:
        began = compose([str(snapshot.checkpoint.folder / "config.yaml")])
        if config.seed != began.seed:
            raise ConfigError(f"seed={config.seed}: a run goes on with the seed that it began with, {began.seed}")
        if config.loop.warmup_steps != began.loop.warmup_steps:
            raise ConfigError(
                f"loop.warmup_steps={config.loop.warmup_steps}: the random start is settled when a run begins, and "
                f"this one has {began.loop.warmup_steps}"
            )
        _go_on(config, directory, snapshot, damaged)


def train_or_resume(files: Sequence[str], overrides: Sequence[str]) -> None:
    """Train a new run, or, with ``resume=auto``, go on with the one of this name if it has a checkpoint.

    files, overrides: see ``compose``.
    Raises ``ConfigError`` when that run was made with another configuration, or is being trained at this moment.
    """
    config = compose(files, overrides)
    directory = RunDirectory(Path(config.run.dir) / (config.run.name or plain_name(config, files)))
    if config.resume == "auto":
        refuse_if_training(directory)
        if list_checkpoints(directory):
            snapshot, damaged = newest_valid(directory, verify_snapshot)
            saved = compose([str(snapshot.checkpoint.folder / "config.yaml")])
            if config.threads == "auto":  # which the run has long decided
                config = dataclasses.replace(config, threads=saved.threads)
            refuse_other_configuration(saved, config, directory)
            _go_on(config, directory, snapshot, damaged)
            return
    fabric = make_fabric(config)
    config, directory = new_run(config, files, fabric)
    train_run(config, fabric, directory)


def _go_on(config: Config, directory: RunDirectory, snapshot: VerifiedSnapshot, damaged: Sequence[Path]) -> None:
    # The run may have been moved since, and belongs where it is now.
    run = dataclasses.replace(config.run, dir=str(directory.root), name=directory.name)
    config = dataclasses.replace(config, run=run)
    taken = snapshot.checkpoint.manifest["env_steps"]
    evaluated = (directory.evaluation / f"step-{taken:09d}.json").exists()  # deleted, it is made again
    if taken >= config.loop.env_steps and evaluated and directory.finished_at() == taken:
        print(f"{directory.name} has taken all its {taken:,} environment steps; go on with loop.env_steps=N, N larger")
        return
    train_run(config, make_fabric(config), directory, snapshot, damaged)

"""One training run from beginning to end: directory, tracker, loop, last evaluation, report."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from lightning.fabric import Fabric

from stormlit.config.compose import to_tree
from stormlit.config.schema import Config
from stormlit.envs import env_name
from stormlit.errors import ConfigError
from stormlit.registry import build
from stormlit.runs.checkpoint import latest_checkpoint, list_checkpoints
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.housekeeping import evaluate_agent, log_metrics, make_media, record, told_if_unwritten
from stormlit.runs.play import play_baselines
from stormlit.runs.progress import ProgressBar
from stormlit.runs.signals import Stopped, StopSignals
from stormlit.runs.snapshot import (
    WholeSnapshot,
    forget_other_futures,
    load_initial_weights,
    restore_snapshot,
    save_snapshot,
)
from stormlit.runs.training import Training, build_training, save_config
from stormlit.storm.evaluate import Evaluation
from stormlit.storm.loop import fit
from stormlit.tracking import RunStatus, Tracker, run_tags


def new_run(config: Config, files: list[str], fabric: Fabric) -> tuple[Config, RunDirectory]:
    """Name a new run. The main process decides, the others follow.

    Returns the configuration with its name filled in.  Raises ``ConfigError`` when the name is taken.
    """
    name = ""
    if fabric.is_global_zero:
        name = config.run.name or (plain_name if config.resume == "auto" else _free_name)(config, files)
    name = fabric.broadcast(name)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))
    directory = RunDirectory(Path(config.run.dir).expanduser() / name)
    # A run that died before its first checkpoint has nothing to go on with: it may begin anew.
    if fabric.broadcast(bool(list_checkpoints(directory))):
        raise ConfigError(
            f"run.name={name}: there is a run of that name in {config.run.dir}; go on with "
            f"`stormlit resume {name}` or choose another name"
        )
    return config, directory


def train_run(
    config: Config,
    fabric: Fabric,
    directory: RunDirectory,
    snapshot: WholeSnapshot | None = None,
    damaged: Sequence[Path] = (),
) -> None:
    """Train from scratch, or from a checkpoint of the same run, to the end of the budget, and report.

    damaged: newer checkpoints that cannot be used and are to be kept aside.
    Raises ``Stopped`` when a signal has ended it, ``SaveError`` when the last checkpoint could not be written.
    """
    # What this process decided upon: between that and the lock another one may train the run.
    known = [] if snapshot is None else list_checkpoints(directory)
    node = config.tracking if fabric.is_global_zero else {"name": "none"}
    tracker: Tracker = build("tracker", node, directory.path, directory.root, key="tracking")
    # Everything that can be wrong with the input is found before the first trace of the run is left.
    training = build_training(config, fabric, directory, tracker)
    if snapshot is not None:
        restore_snapshot(training, snapshot)
    elif config.run.init_from is not None:
        load_initial_weights(training, config.run.init_from)
    with exclusive(directory) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            _refuse_if_changed(directory, known)
            _begin(training, run_id=_run_id(directory, snapshot))
        with _writable(directory):
            forget_other_futures(training, None if snapshot is None else snapshot.checkpoint.folder, damaged)
        results = _train_to_the_end(training)
        if fabric.is_global_zero:
            with told_if_unwritten("that the run is finished"):
                directory.write_finished(training.progress.env_steps)
    if results:
        print(report(training, results), flush=True)


def _train_to_the_end(training: Training) -> list[Evaluation]:
    """Fit and finish with the progress bar shown; whatever happens, the tracker's run is closed with how it ended."""
    status: RunStatus = "FAILED"
    budget, is_main = training.config.loop.env_steps, training.is_main
    with StopSignals() as training.signals:
        try:
            with ProgressBar(budget, training.progress.env_steps, enabled=is_main) as training.bar:
                fit(training)
                results = finish(training)
            status = "FINISHED"
        except (KeyboardInterrupt, Stopped):
            status = "KILLED"
            raise
        finally:
            training.envs.close()
            with told_if_unwritten(f"the tracker's last words, {status},"):
                training.tracker.finish(status)
    return results


def _run_id(directory: RunDirectory, snapshot: WholeSnapshot | None) -> str | None:
    """The tracker's run to go on with, None for a new one."""
    if snapshot is None:
        return None
    return snapshot.checkpoint.manifest.get("run_id") or directory.run_id()


def _refuse_if_changed(directory: RunDirectory, known: list[Path]) -> None:
    if list_checkpoints(directory) != known:
        raise ConfigError(
            f"run.name={directory.name}: another process has trained that run in {directory.root} meanwhile; "
            f"go on with `stormlit resume {directory.name}` or choose another name"
        )


@contextmanager
def _writable(directory: RunDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"run.dir={directory.root}: cannot write there ({error.strerror or error})") from error


def _begin(training: Training, run_id: str | None) -> None:
    """Leave the first traces of a run, or go on with the tracker's run ``run_id``."""
    config, directory, tracker = training.config, training.directory, training.tracker
    tags = _tags(config, training.fabric)
    from_step = None if run_id is None else training.progress.env_steps
    with _writable(directory):
        training.run_id = tracker.start(
            name=directory.name, params=to_tree(config), tags=tags, run_id=run_id, from_step=from_step
        )
        directory.forget_finished()
        save_config(directory, config)
        directory.write_identity(training.run_id)
        tracker.artifact(directory.config_file)
    print(_headline(training), file=sys.stderr, flush=True)


def finish(training: Training) -> list[Evaluation]:
    """The last metrics, checkpoint, video and evaluations; returns the agent's and the baselines' results."""
    config, schedules, env_steps = training.config, training.schedules, training.progress.env_steps
    # What the loop has done at this very step is not done twice.
    # Saved before the means are taken, so that a run that goes on from here logs what an unbroken one would.
    if training.saved_at != env_steps:
        save_snapshot(training)
    with training.signals.at_once():
        if schedules.log.last_due != env_steps:
            log_metrics(training)
        if schedules.media.last_due != env_steps:
            make_media(training)
        # A process that died after evaluating on the way, at the last step, has left none to this one.
        if schedules.evaluation.last_due != env_steps or training.latest_evaluation is None:
            evaluate_agent(training)
        if training.latest_evaluation is None:
            return []
        training.tracker.artifact(latest_checkpoint(training.directory), "checkpoints")
        baselines = play_baselines(config)
        for baseline in baselines:
            record(training, {f"eval/baseline/{baseline.policy}": baseline.mean}, "baselines")
        return [training.latest_evaluation, *baselines]


def report(training: Training, results: list[Evaluation]) -> str:
    """What came out and where it is, for a person."""
    directory = training.directory
    width = max(len(result.policy) for result in results)
    videos = sorted(directory.media.glob("dream-[0-9]*"))
    lines = [
        "",
        f"{results[0].game}, {training.progress.env_steps:,} environment steps: returns",
        *(f"  {result.policy:<{width}} {result.summary()}" for result in results),
        "",
        f"run         {directory.path}  (name for `stormlit eval`, `dream`, `resume`: {directory.name})",
        f"checkpoint  {latest_checkpoint(directory)}",
        *(f"dream video {video}" for video in videos[-1:]),
        *training.tracker.where_to_look(),
    ]
    return "\n".join(lines)


def plain_name(config: Config, files: list[str]) -> str:
    """``<file>-<environment>-s<seed>``."""
    stem = re.sub(r"[^\w.+-]+", "-", Path(files[-1]).stem).strip("-.+") if files else ""
    return f"{stem or 'storm'}-{env_name(config.env)}-s{config.seed}"


def _free_name(config: Config, files: list[str]) -> str:
    """The plain name, with a number behind it when that is taken."""
    name = plain_name(config, files)
    taken, number = name, 2
    while list_checkpoints(RunDirectory(Path(config.run.dir).expanduser() / taken)):
        taken, number = f"{name}-{number}", number + 1
    return taken


def _tags(config: Config, fabric: Fabric) -> dict[str, str]:
    return {"game": env_name(config.env), "seed": str(config.seed), **run_tags(fabric.device)}


def _headline(training: Training) -> str:
    """What is about to run, and how much memory the replay buffer may take."""
    config, fabric, replay = training.config, training.fabric, training.replay
    parameters = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (training.world_model, training.agent)]
    shape = "x".join(str(n) for n in training.envs.obs_shape)
    lines = [
        f"{training.directory.name}: {env_name(config.env)} on {fabric.device} ({fabric._precision.precision}, "
        f"{fabric.world_size} process{'es' * (fabric.world_size > 1)}, {torch.get_num_threads()} threads)",
        f"world model {parameters[0]:.2f} M parameters, agent {parameters[1]:.2f} M",
        f"replay buffer {replay.row_capacity * replay.num_envs:,} steps of {shape} uint8: at most "
        f"{replay.nbytes / 2**20:,.0f} MiB on {replay.device}",
    ]
    if training.demonstrations is not None:
        lines.append(
            f"demonstrations: {training.demonstrations.steps:,} steps of "
            f"{', '.join(file.name for file in training.demonstrations.files)}: "
            f"{config.demonstrations.batch_size} more windows in a batch, "
            f"{config.demonstrations.imagination_batch_size} more contexts in an imagination"
        )
    if training.warmup_steps < config.loop.warmup_steps:
        lines.append(
            f"loop.env_steps={config.loop.env_steps} is not more than loop.warmup_steps={config.loop.warmup_steps}: "
            f"the random start is shortened to {training.warmup_steps} steps"
        )
    return os.linesep.join(lines)

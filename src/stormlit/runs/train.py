"""One training run from beginning to end, new or gone on with: directory, tracker, loop, last evaluation, report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from stormlit.analysis.evaluate import Evaluation
from stormlit.config.compose import compose, to_tree, to_yaml
from stormlit.config.schema import Config
from stormlit.envs import env_name
from stormlit.errors import ConfigError, SaveError, TrainingError, first_line
from stormlit.files import write_atomically
from stormlit.registry import build
from stormlit.runs.after_step import after_step, evaluate_agent, log_metrics, make_media, record, warn_on_os_error
from stormlit.runs.allowed_changes import changed_configuration, refuse_other_configuration
from stormlit.runs.assembly import build_training, run_baselines
from stormlit.runs.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, load_modules, newest_valid
from stormlit.runs.device import make_fabric
from stormlit.runs.directory import RunDirectory, exclusive, find_run, refuse_if_training, writable
from stormlit.runs.estimate import check_memory, out_of_memory, settle_threads, time_to_come
from stormlit.runs.progress import ProgressBar
from stormlit.runs.report import draw_returns, headline, report
from stormlit.runs.result import result_of
from stormlit.runs.run import Run
from stormlit.runs.signals import Stopped, StopSignals
from stormlit.runs.snapshot import discard_newer_than, restore_snapshot, save_snapshot
from stormlit.storm.fabric_internals import launched_by_fabric
from stormlit.storm.loop import fit
from stormlit.tracking import RunStatus, Tracker, run_tags

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def resume_run(reference: str, root: Path, overrides: Sequence[str]) -> None:
    """Go on with a run from its newest checkpoint that is whole, or from the one that is named."""
    refuse_if_training(find_run(reference, root)[0])
    directory, checkpoint, damaged = find_checkpoint(reference, root, replay=True)
    with changed_configuration(checkpoint.folder, directory, overrides) as config:
        began = compose([str(checkpoint.folder / "config.yaml")])
        if config.seed != began.seed:
            raise ConfigError(f"seed={config.seed}: a run goes on with the seed that it began with, {began.seed}")
        if config.loop.warmup_steps != began.loop.warmup_steps:
            raise ConfigError(
                f"loop.warmup_steps={config.loop.warmup_steps}: the random start is settled when a run begins, and "
                f"this one has {began.loop.warmup_steps}"
            )
        _go_on(config, directory, checkpoint, damaged)


def train_or_resume(files: Sequence[str], overrides: Sequence[str]) -> None:
    """Train a new run, or, with ``resume=auto``, go on with the one of this name if it has a checkpoint.

    files, overrides: see ``compose``.
    Raises ``ConfigError`` when that run was made with another configuration, or is being trained at this moment.
    """
    config = compose(files, overrides)
    directory = RunDirectory(Path(config.run.dir) / (config.run.name or _plain_name(config, files)))
    if config.resume == "auto":
        refuse_if_training(directory)
        if list_checkpoints(directory):
            checkpoint, damaged = newest_valid(directory, replay=True)
            saved = compose([str(checkpoint.folder / "config.yaml")])
            if config.threads == "auto":  # which the run has long decided
                config = dataclasses.replace(config, threads=saved.threads)
            refuse_other_configuration(saved, config, directory)
            _go_on(config, directory, checkpoint, damaged)
            return
    _begin_run(config, files)


def _go_on(config: Config, directory: RunDirectory, checkpoint: Checkpoint, damaged: Sequence[Path]) -> None:
    # The run may have been moved since, and belongs where it is now.
    run = dataclasses.replace(config.run, dir=str(directory.root), name=directory.name)
    config = dataclasses.replace(config, run=run)
    taken = checkpoint.manifest["env_steps"]
    if taken >= config.loop.env_steps and directory.finished_at() == taken:
        print(f"{directory.name} has taken all its {taken:,} environment steps; go on with loop.env_steps=N, N larger")
        return
    _train_run(config, make_fabric(config), directory, checkpoint, damaged)


def _begin_run(config: Config, files: Sequence[str]) -> None:
    """Train a new run under its name, or one that is free. The main process decides, the others follow.

    Raises ``ConfigError`` when the name is taken.
    """
    fabric = make_fabric(config)
    plain, number = _plain_name(config, files), 2
    name = config.run.name or plain
    is_given = config.run.name is not None or config.resume == "auto"
    while not is_given and list_checkpoints(RunDirectory(Path(config.run.dir) / name)):
        name, number = f"{plain}-{number}", number + 1
    name = fabric.broadcast(name)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))
    directory = RunDirectory(Path(config.run.dir) / name)
    # A run that died before its first checkpoint has nothing to go on with: it may begin anew.
    if fabric.broadcast(bool(list_checkpoints(directory))):
        raise ConfigError(
            f"run.name={name}: there is a run of that name in {config.run.dir}; go on with "
            f"`{directory.resume_command()}` or choose another name"
        )
    _train_run(config, fabric, directory)


def _train_run(
    config: Config,
    fabric: Fabric,
    directory: RunDirectory,
    checkpoint: Checkpoint | None = None,
    damaged: Sequence[Path] = (),
) -> None:
    """Train from scratch, or from a checkpoint of the same run, to the end of the budget, and report.

    damaged: newer checkpoints that cannot be used and are to be kept aside.
    Raises ``Stopped`` when a signal has ended it, ``SaveError`` when the last checkpoint could not be written.
    """
    node = config.tracking if fabric.is_global_zero else {"name": "none"}
    tracker: Tracker = build("tracker", node, directory.path, directory.root, key="tracking")
    # Everything that can be wrong with the input is found before the first trace of the run is left.
    try:
        training = build_training(config, fabric)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched_by_fabric() else 1
        config = settle_threads(config, fabric.device, training.world_model, training.agent, processes)
        run = Run(config, directory, training, tracker)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(
            f"the modules do not fit into memory ({first_line(error)}): lower "
            "world_model.hidden_dim, agent.hidden_dim or the sizes of the parts"
        ) from error
    check_memory(config, training)
    if checkpoint is not None:
        restore_snapshot(run, checkpoint)
    elif config.run.init_from is not None:
        _, given, _ = find_checkpoint(config.run.init_from, directory.root)
        load_modules(given, training.world_model, training.agent)
    with exclusive(directory) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            _begin(run, run_id=None if checkpoint is None else checkpoint.manifest.get("run_id") or None)
        with writable(directory):
            discard_newer_than(run, None if checkpoint is None else checkpoint.folder, damaged)
        results = _train_to_the_end(run)
        if fabric.is_global_zero:
            with warn_on_os_error("that the run is finished"):
                directory.write_finished(run.env_steps)
    if results:
        print(report(run, results), flush=True)


def _train_to_the_end(run: Run) -> list[Evaluation]:
    """Fit and finish with the progress bar shown; whatever happens, the tracker's run is closed with how it ended."""
    status: RunStatus = "FAILED"
    training = run.training
    with StopSignals() as run.signals:
        try:
            told = time_to_come(run.config, training) if training.is_main else None
            if told is not None and not run.signals.received:
                print(told, file=sys.stderr, flush=True)
            with ProgressBar(training.plan.env_steps, run.env_steps, enabled=training.is_main) as run.bar:
                fit(training, functools.partial(after_step, run))
                results = finish(run)
            status = "FINISHED"
        except (KeyboardInterrupt, Stopped):
            status = "KILLED"
            raise
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise _save_after(error, run) from error
        finally:
            training.envs.close()
            with warn_on_os_error(f"the tracker's last words, {status},"):
                run.tracker.finish(status)
    return results


def _save_after(error: Exception, run: Run) -> TrainingError:
    """Save what there is after running out of memory; returns the error to raise."""
    saved = "the last checkpoint is kept"
    # Other processes may be anywhere, and a checkpoint of this very step is better than one in the middle of it.
    if run.training.fabric.world_size == 1 and run.env_steps and run.saved_at != run.env_steps:
        with contextlib.suppress(SaveError, MemoryError, RuntimeError):
            save_snapshot(run)
            saved = "the run is saved"
    return TrainingError(
        f"out of memory at step {run.env_steps:,} ({first_line(error)}): lower loop.batch_size or loop.batch_length "
        f"(the world model's), imagination.batch_size (the agent's) or replay.capacity; {saved}, go on with "
        f"`{run.directory.resume_command('loop.batch_size=N')}`"
    )


def _begin(run: Run, run_id: str | None) -> None:
    """Leave the first traces of a run, or go on with the tracker's run ``run_id``."""
    config, directory, tracker = run.config, run.directory, run.tracker
    facts = {"game": env_name(config.env), "seed": str(config.seed), **run_tags(run.training.fabric.device)}
    run.tags = {**tracker.labels, **facts}
    from_step = None if run_id is None else run.env_steps
    with writable(directory):
        run.run_id = tracker.start(
            name=directory.name, params=to_tree(config), tags=run.tags, run_id=run_id, from_step=from_step
        )
        directory.forget_finished()
        write_atomically(directory.config_file, to_yaml(config).encode())
        directory.write_identity(run.run_id)
        tracker.artifact(directory.config_file)
    print(headline(run), file=sys.stderr, flush=True)


def finish(run: Run) -> list[Evaluation]:
    """The last metrics, checkpoint, pictures and evaluations; returns the agent's and the baselines' results."""
    schedules, env_steps = run.schedules, run.env_steps
    # What the loop has done at this very step is not done twice.
    # Saved before the means are taken, so that a run that goes on from here logs what an unbroken one would.
    if run.saved_at != env_steps:
        save_snapshot(run)
    with run.signals.at_once():
        if schedules["log"].last_due != env_steps:
            log_metrics(run)
        if schedules["media"].last_due != env_steps:
            make_media(run)
        # A process that died after evaluating on the way, at the last step, has left none to this one.
        if schedules["evaluation"].last_due != env_steps or run.latest_evaluation is None:
            evaluate_agent(run)
        if run.latest_evaluation is None:
            return []
        run.tracker.artifact(list_checkpoints(run.directory)[-1], "checkpoints")
        baselines = run_baselines(run.config, run.bar.show_evaluation)
        for baseline in baselines:
            record(run, {f"eval/baseline/{baseline.policy}": baseline.mean}, "baselines")
        results = [run.latest_evaluation, *baselines]
        draw_returns(run, results)
        with warn_on_os_error("the run's result"):
            run.tracker.artifact(result_of(run, results).write(run.directory.path))
        return results


def _plain_name(config: Config, files: Sequence[str]) -> str:
    """``<file>-<environment>-s<seed>``."""
    stem = re.sub(r"[^\w.+-]+", "-", Path(files[-1]).stem).strip("-.+") if files else ""
    return f"{stem or 'storm'}-{env_name(config.env)}-s{config.seed}"

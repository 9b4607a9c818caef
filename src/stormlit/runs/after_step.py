"""What a run does after each step: log, draw, evaluate, save, and stop when it is asked to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import NoReturn

import numpy as np
import torch

from stormlit.analysis.dream import dream, dream_errors, dream_length, dream_window
from stormlit.analysis.evaluate import random_devices
from stormlit.analysis.pictures import dream_picture, write_dream_video, write_image, write_reconstruction_grid
from stormlit.analysis.plots import write_curves
from stormlit.errors import ElsewhereError, EnvironmentContractError, EnvironmentCrashError, SaveError, describe
from stormlit.files import write_json
from stormlit.runs.assembly import run_evaluation
from stormlit.runs.device import wait_for_all
from stormlit.runs.run import Run
from stormlit.runs.signals import Stopped
from stormlit.runs.snapshot import keep_if_best, save_or_go_on, save_snapshot
from stormlit.storm.loop import check_updates


def after_step(run: Run) -> None:
    """Log, draw, evaluate and save, whenever due; save, and stop, when a signal asks for it or environments failed.

    Raises ``EnvironmentCrashError``, after a checkpoint, when environments crash more often than allowed, and
    ``Stopped``, after a checkpoint, when a signal asked for the end.
    """
    training, schedules, env_steps = run.training, run.schedules, run.training.progress.env_steps
    was_random = env_steps - training.steps_at_once < training.plan.warmup_steps
    run.bar.advance(training.steps_at_once)
    run.bar.show(training.collector.latest_return, "random" if was_random else "train")
    failure = training.collector.envs.failure
    if schedules["log"].due(env_steps):
        check_updates(training)
        log_metrics(run)
    if schedules["media"].due(env_steps):
        make_media(run)
    if schedules["evaluation"].due(env_steps):
        try:
            evaluate_agent(run)
        except EnvironmentCrashError as error:
            failure = error
        wait_for_all(training.fabric)
    stopped_by, minutes_passed, failed = _asked(run, failure is not None)
    save = schedules["checkpoint"].due(env_steps) or minutes_passed
    if not (stopped_by or failed or save):
        return
    check_updates(training)
    if failed:
        _save_and_fail(run, failure)
    if not stopped_by:
        return save_or_go_on(run)
    save_snapshot(run)
    raise Stopped(stopped_by, f"after step {env_steps:,}; go on with `{run.directory.resume_command()}`")


def _asked(run: Run, failed: bool) -> tuple[int, bool, bool]:
    """The same in every process: the signal that has come to any (0: none), whether the clock wants a checkpoint, and
    whether environments have failed.
    """
    received, due, fabric = run.signals.received, run.clock.due(), run.training.fabric
    if fabric.world_size > 1:
        here = torch.tensor([received, due, failed], device=fabric.device)
        received, due, failed = fabric.all_reduce(here, reduce_op="max").tolist()  # type: ignore[union-attr]
    return received, bool(due), bool(failed)


def _save_and_fail(run: Run, failure: EnvironmentCrashError | None) -> NoReturn:
    kind = ElsewhereError if failure is None else type(failure)
    what = failure or "the environments of another process failed"
    try:
        save_snapshot(run)
    except SaveError as error:
        raise kind(f"{what}; besides, {error}") from failure
    words = () if isinstance(failure, EnvironmentContractError) else ("env.max_restarts=N",)
    raise kind(f"{what}; the run is saved: go on with `{run.directory.resume_command(*words)}`") from failure


def log_metrics(run: Run) -> None:
    """Hand the means since the last call to the tracker, with ``env_steps`` as the step."""
    training = run.training
    metrics = training.metrics.drain()
    of_world_model = {key.partition("/")[2]: value for key, value in metrics.items() if key.startswith("world_model/")}
    run.latest_metrics = of_world_model or run.latest_metrics
    if not training.is_main:
        return
    progress = training.progress
    values = {
        **metrics,
        "progress/world_model_updates": progress.world_model_updates,
        "progress/agent_updates": progress.agent_updates,
        "progress/episodes": progress.episodes,
        "progress/nonfinite_updates": training.world_model_learner.skipped + training.agent_learner.skipped,
        "progress/env_restarts": training.envs.restarts,
        "progress/failed_checkpoints": progress.failed_checkpoints,
        "replay/env_steps": training.replay.steps,
        "throughput/env_steps_per_second": run.bar.steps_per_second(),
    }
    record(run, values, "metrics")


def make_media(run: Run) -> None:
    """Draw a stretch of the replay buffer: of images a reconstruction grid, and a dream as a picture and as a video; of
    vectors curves; log how true they are.
    """
    training, env_steps, media = run.training, run.env_steps, run.directory.media
    if not training.is_main:
        return
    with torch.random.fork_rng(devices=random_devices()), training.fabric.autocast():
        length = dream_length(training.world_model, run.config.loop.batch_length)
        window = dream_window(training.replay, length, training.fabric.device, seed=env_steps)
        seen = dream(training.world_model, window, run.config.imagination.context_length)
    with warn_on_os_error(f"the pictures of step {env_steps:,}"):
        files = []
        if seen.frames is not None:
            files += [
                write_dream_video(media / f"dream-{env_steps:09d}.mp4", [seen], training.envs.action_meanings),
                write_image(media / f"dream-{env_steps:09d}.png", dream_picture(seen)),
                write_reconstruction_grid(media / f"reconstruction-{env_steps:09d}.png", seen),
            ]
        if seen.vector is not None:
            curves, names = media / f"curves-{env_steps:09d}.png", training.envs.observation_space.names
            files.append(write_curves(curves, seen.vector, names, seen.context_length))
        for file in files:
            run.tracker.artifact(file, "media")
    metrics = {f"dream/{name}": error for name, error in dream_errors(seen).items()}
    if seen.frames is not None:
        metrics["dream/psnr_reconstructed"] = _psnr(seen.frames.reconstructed, seen.frames.real)
        dreamt = slice(seen.context_length, None)
        if len(seen.frames.real[dreamt]):
            metrics["dream/psnr_imagined"] = _psnr(seen.frames.imagined[dreamt], seen.frames.real[dreamt])
    record(run, metrics, "metrics of the dream")


def evaluate_agent(run: Run) -> None:
    """Play whole episodes with the current weights, in the main process alone."""
    training, env_steps = run.training, run.env_steps
    if not training.is_main:
        return
    shown = run.bar.show_evaluation("agent")
    result = run_evaluation(run.config, training.fabric, training.world_model, training.agent, on_step=shown)
    metrics = {"eval/return": result.mean, "eval/return_std": result.std}
    if result.human_normalized is not None:
        metrics["eval/human_normalized"] = result.human_normalized
    record(run, metrics, "returns")
    run.latest_evaluation = result
    if run.config.checkpoint.keep_best:
        with warn_on_os_error(f"the best checkpoint, of step {env_steps:,},"):
            keep_if_best(run, result.mean)
    file = run.directory.evaluation / f"step-{env_steps:09d}.json"
    with warn_on_os_error(f"the evaluation of step {env_steps:,}"):
        write_json(file, result.as_dict())
        run.tracker.artifact(file, "evaluation")


def record(run: Run, values: Mapping[str, float], what: str) -> None:
    """Hand metrics to the tracker, with ``env_steps`` as the step; a tracker that fails ends no training."""
    with warn_on_os_error(f"the {what} of step {run.env_steps:,}", others="were not recorded"):
        run.tracker.log(values, run.env_steps)


@contextlib.contextmanager
def warn_on_os_error(what: str, others: str | None = None) -> Iterator[None]:
    """Say on stderr what a disk did not take, where training can do without it.

    others: what to say of any other error, where code runs that is not ours; None raises it.
    """
    try:
        yield
    except OSError as error:
        print(f"stormlit: {what} could not be written ({error.strerror or error})", file=sys.stderr, flush=True)
    except Exception as error:
        if others is None:
            raise
        print(f"stormlit: {what} {others}: {describe(error)}", file=sys.stderr, flush=True)


def _psnr(predicted: np.ndarray, real: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames in dB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # imports SciPy, which takes a second

    frames = (torch.from_numpy(predicted).float(), torch.from_numpy(real).float())
    return float(peak_signal_noise_ratio(*frames, data_range=255.0))

"""What a run shows while it trains: metrics, pictures and evaluations."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from stormlit.files import write_json
from stormlit.runs.pictures import write_dream_video, write_reconstruction_grid
from stormlit.runs.play import play_agent
from stormlit.runs.training import Training
from stormlit.storm.dream import dream, dream_length, dream_window
from stormlit.storm.evaluate import random_devices


def log_metrics(training: Training) -> None:
    """Hand the means since the last call to the tracker, with ``env_steps`` as the step."""
    metrics = training.metrics.drain()
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
        "throughput/env_steps_per_second": training.bar.steps_per_second(),
    }
    record(training, values, "metrics")


def make_media(training: Training) -> None:
    """Draw a reconstruction grid and a dream video of a stretch of the replay buffer, and log how true they are."""
    if not training.is_main:
        return
    env_steps, media = training.progress.env_steps, training.directory.media
    with torch.random.fork_rng(devices=random_devices()), training.fabric.autocast():
        length = dream_length(training.world_model)
        window = dream_window(training.replay, length, training.fabric.device, seed=env_steps)
        seen = dream(training.world_model, window, training.config.imagination.context_length)
    with told_if_unwritten(f"the pictures of step {env_steps:,}"):
        files = (
            write_dream_video(media / f"dream-{env_steps:09d}.mp4", [seen], training.envs.action_meanings),
            write_reconstruction_grid(media / f"reconstruction-{env_steps:09d}.png", seen),
        )
        for file in files:
            training.tracker.artifact(file, "media")
    metrics = {"dream/psnr_reconstructed": _psnr(seen.reconstructed, seen.real)}
    if len(seen.real) > seen.context_length:
        dreamt = slice(seen.context_length, None)
        metrics["dream/psnr_imagined"] = _psnr(seen.imagined[dreamt], seen.real[dreamt])
    record(training, metrics, "metrics of the dream")


def evaluate_agent(training: Training) -> None:
    """Play whole episodes with the current weights, in the main process alone."""
    if not training.is_main:
        return
    env_steps = training.progress.env_steps
    result = play_agent(
        training.config,
        training.fabric,
        training.world_model,
        training.agent,
        on_episode=lambda _: training.bar.show(training.latest_return, "evaluate"),
    )
    metrics = {"eval/return": result.mean, "eval/return_std": result.std}
    if result.human_normalized is not None:
        metrics["eval/human_normalized"] = result.human_normalized
    record(training, metrics, "returns")
    training.latest_evaluation = result
    file = training.directory.evaluation / f"step-{env_steps:09d}.json"
    with told_if_unwritten(f"the evaluation of step {env_steps:,}"):
        write_json(file, result.as_dict())
        training.tracker.artifact(file, "evaluation")


def record(training: Training, values: Mapping[str, float], what: str) -> None:
    """Hand metrics to the tracker, with ``env_steps`` as the step; a tracker that cannot write ends no training."""
    env_steps = training.progress.env_steps
    with told_if_unwritten(f"the {what} of step {env_steps:,}"):
        training.tracker.log(values, env_steps)


@contextlib.contextmanager
def told_if_unwritten(what: str) -> Iterator[None]:
    """What training can do without is told on stderr when a disk does not take it."""
    try:
        yield
    except OSError as error:
        print(f"stormlit: {what} could not be written ({error.strerror or error})", file=sys.stderr, flush=True)


def _psnr(predicted: np.ndarray, real: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames in dB."""
    frames = (torch.from_numpy(predicted).float(), torch.from_numpy(real).float())
    return float(peak_signal_noise_ratio(*frames, data_range=255.0))

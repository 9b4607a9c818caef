"""What a run tells a person: in its first lines what is about to happen, and at its end what came out."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from stormlit.analysis.evaluate import Evaluation
from stormlit.analysis.plots import plot_returns
from stormlit.envs import env_name
from stormlit.errors import counted
from stormlit.runs.after_step import warn_on_os_error
from stormlit.runs.checkpoint import best_checkpoint, list_checkpoints
from stormlit.runs.directory import BEST
from stormlit.runs.estimate import cores, told_threads
from stormlit.runs.result import evaluations
from stormlit.runs.run import Run


def headline(run: Run) -> str:
    """What is about to run, how much memory the replay buffer may take, and where the numbers go."""
    config, training = run.config, run.training
    fabric, replay, demonstrations = training.fabric, training.replay, training.experience.demonstrations
    parameters = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (training.world_model, training.agent)]
    processes, threads = counted(fabric.world_size, "process"), counted(torch.get_num_threads(), "thread")
    lines = [
        f"{run.directory.name}: {env_name(config.env)} on {fabric.device} ({fabric.strategy.precision.precision}, "
        f"{processes}, {threads} on {counted(cores(), 'core')})",
        f"world model {parameters[0]:.2f} M parameters, agent {parameters[1]:.2f} M",
        f"replay buffer {replay.row_capacity * replay.num_envs:,} steps of {training.envs.observation_space}: at most "
        f"{replay.nbytes / 2**20:,.0f} MiB on {replay.device}",
        *run.tracker.where_to_look()[:1],
        *told_threads(config),
    ]
    if demonstrations is not None:
        lines.append(
            f"demonstrations: {demonstrations.steps:,} steps of "
            f"{', '.join(file.name for file in demonstrations.files)}: "
            f"{config.demonstrations.batch_size} more windows in a batch, "
            f"{config.demonstrations.imagination_batch_size} more contexts in an imagination"
        )
    if training.plan.warmup_steps < config.loop.warmup_steps:
        lines.append(
            f"loop.env_steps={config.loop.env_steps} is not more than loop.warmup_steps={config.loop.warmup_steps}: "
            f"the random start is shortened to {training.plan.warmup_steps} steps"
        )
    learning_steps = training.plan.env_steps - training.plan.warmup_steps
    for key, module in (("world_model", "world model"), ("agent", "agent")):
        ratio = getattr(config.loop, f"{key}_updates_per_env_step")
        if ratio * learning_steps < 1:
            lines.append(
                f"loop.{key}_updates_per_env_step={ratio:g}: the {module} is never updated in the {learning_steps:,} "
                "steps after the random start"
            )
    return os.linesep.join(lines)


def draw_returns(run: Run, results: Sequence[Evaluation]) -> None:
    """Plot the returns of the training and of its last evaluations; a plot that fails ends no run."""
    # Matplotlib reads settings of the user's own, which may be broken.
    with warn_on_os_error("the plot of the returns", others="was not drawn"):
        earlier = [
            (step, statistics.fmean(told))
            for step, returns in evaluations(run.directory, run.env_steps - 1)
            if (told := [value for value in returns if value is not None])
        ]
        file = plot_returns(run.directory.returns_plot, run.env_steps, run.training.returns, results, earlier)
        run.tracker.artifact(file, "media")


def report(run: Run, results: Sequence[Evaluation]) -> str:
    """What came out and where it is, for a person."""
    directory = run.directory
    width = max(len(result.policy) for result in results)
    drawn = (_newest(run, "dream", ".png"), _newest(run, "curves", ".png"))
    pictures = [file for file in (directory.returns_plot, *drawn) if file is not None and file.is_file()]
    video = _newest(run, "dream", ".mp4") or _newest(run, "dream", ".gif")
    lines = [
        "",
        f"{results[0].game}, {run.env_steps:,} environment steps: returns",
        *(f"  {result.policy:<{width}} {result.summary()}" for result in results),
        "",
        *(f"{'look first' if file is pictures[0] else '':<11} {file.resolve()}" for file in pictures),
        *([] if video is None else [f"dream video {video.resolve()}"]),
        f"run         {directory.path.resolve()}  (what `stormlit eval`, `dream` and `resume` take)",
        f"checkpoint  {list_checkpoints(directory)[-1].resolve()}",
        *_told_best(run),
        *run.tracker.where_to_look(),
    ]
    return "\n".join(lines)


def _told_best(run: Run) -> list[str]:
    """A line on it for the end of a run, nothing where it was not asked for."""
    known = best_checkpoint(run.directory) if run.config.checkpoint.keep_best else None
    if known is None:
        return []
    return [
        f"best        {known[0].resolve()}  (mean return {known[1]:.4g}; the highest of several evaluations is "
        f"optimistic: evaluate it anew, with `stormlit eval {run.directory.path.resolve()}{BEST} seed=N`)"
    ]


def _newest(run: Run, name: str, suffix: str) -> Path | None:
    """The newest of the training's own pictures of that name, without those of a future that the run went back from."""
    last = f"{name}-{run.env_steps:09d}"
    files = sorted(run.directory.media.glob(f"{name}-[0-9]*{suffix}"))
    return max((file for file in files if file.stem <= last), default=None)

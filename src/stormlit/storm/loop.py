"""The training loop: collect real steps, fit the world model, improve the agent in imagination.

Only weights flow back from learning to acting, through the player that the collector holds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stormlit.errors import EnvironmentCrashError, SaveError
from stormlit.runs.housekeeping import evaluate_agent, log_metrics, make_media
from stormlit.runs.signals import Stopped
from stormlit.runs.snapshot import save_or_go_on, save_snapshot
from stormlit.runs.training import Training
from stormlit.storm.learner import Learner
from stormlit.types import Batch, Trajectory


def fit(training: Training) -> None:
    """Train until ``loop.env_steps`` steps are taken.

    Raises ``TrainingError`` when losses stay non-finite, ``EnvironmentCrashError``, after a checkpoint, when
    environments crash more often than allowed, and ``Stopped``, after a checkpoint, when a signal asked for the end.
    """
    overlap = training.config.loop.overlap
    while training.progress.env_steps < training.config.loop.env_steps:
        action = choose(training)
        if overlap:  # a GPU works on these while the environments are stepped, and the newest step joins one step later
            learn(training)
        collect(training, action)
        if not overlap:
            learn(training)
        keep_house(training)
    check_updates(training)


def choose(training: Training) -> np.ndarray:
    """The next action of every environment, (N,) int64: random at first, then the agent's."""
    with training.fabric.autocast():
        return training.collector.choose(random=in_warmup(training))


def collect(training: Training, action: np.ndarray) -> None:
    """Step every environment, and remember what happened."""
    kind = "random" if in_warmup(training) else "train"
    episodes = training.collector.take(action)
    training.progress.env_steps += training.steps_at_once
    for episode in episodes:
        training.progress.episodes += 1
        if not episode.crashed:  # of the others nobody knows how they would have ended
            training.latest_return = episode.episode_return
            training.metrics.add("episode", {"return": episode.episode_return, "length": float(episode.length)})
    training.bar.advance(training.steps_at_once)
    training.bar.show(training.latest_return, kind)


def in_warmup(training: Training) -> bool:
    """Whether the next step still belongs to the random start."""
    return training.progress.env_steps < training.warmup_steps


def learn(training: Training) -> None:
    """All the updates that one more step of every environment owes."""
    if training.progress.env_steps <= training.warmup_steps:
        return
    for _ in range(training.schedules.world_model.owed(training.steps_at_once)):
        fit_world_model(training)
    for _ in range(training.schedules.agent.owed(training.steps_at_once)):
        improve_agent(training)


def fit_world_model(training: Training) -> None:
    """One update of the world model on windows of real experience."""
    update_world_model(training, sample_batch(training))


def improve_agent(training: Training) -> None:
    """One update of the agent on rollouts imagined from real contexts."""
    update_agent(training, imagine_rollouts(training, sample_contexts(training)))


def sample_batch(training: Training) -> Batch:
    """Windows of real experience for one update of the world model, on the training's device."""
    # Windows are shorter only while the buffer itself is.
    length = min(training.config.loop.batch_length, training.replay.rows)
    return experience(training, training.batch_size, training.demonstrated_windows, length)


def sample_contexts(training: Training) -> Batch:
    """Windows of real experience to imagine from, on the training's device."""
    length = min(training.config.imagination.context_length, training.replay.rows)
    return experience(training, training.imagined_rows, training.demonstrated_contexts, length)


def experience(training: Training, windows: int, demonstrated: int, length: int) -> Batch:
    """Windows of real experience, and behind them those of demonstrations, if there are any."""
    device = training.fabric.device
    batch = training.replay.sample(windows, length).to(device)
    if training.demonstrations is None:
        return batch
    return Batch.cat(batch, training.demonstrations.sample(demonstrated, length).to(device))


def imagine_rollouts(training: Training, contexts: Batch) -> Trajectory:
    """Rollouts of the policy from the contexts, as configured."""
    with training.fabric.autocast():
        return training.imagine(contexts)


def update_world_model(training: Training, batch: Batch) -> None:
    """One optimiser step of the world model."""
    update(training, training.world_model_learner, batch)
    training.progress.world_model_updates += 1


def update_agent(training: Training, trajectory: Trajectory) -> None:
    """One optimiser step of the agent; the slow critic follows."""
    training.agent.update_slow_critic(update(training, training.agent_learner, trajectory))
    training.progress.agent_updates += 1


def update(training: Training, learner: Learner, batch: Batch | Trajectory) -> Tensor:
    """One optimiser step of either module.  Returns a bool scalar on the device: False if it was skipped."""
    done = learner.update(batch)
    training.metrics.add(learner.name, done.metrics, valid=done.finite)
    return done.finite


def keep_house(training: Training) -> None:
    """Log, draw, evaluate and save, whenever due; save, and stop, when a signal asks for it or environments failed."""
    env_steps, schedules = training.progress.env_steps, training.schedules
    if schedules.log.due(env_steps):
        check_updates(training)
        log_metrics(training)
    if schedules.media.due(env_steps):
        make_media(training)
    failure = training.envs.failure
    if schedules.evaluation.due(env_steps):
        try:
            evaluate_agent(training)
        except EnvironmentCrashError as error:
            failure = error
    stopped_by, minutes_passed, failed = asked(training, failure is not None)
    save = schedules.checkpoint.due(env_steps) or minutes_passed
    if not (stopped_by or failed or save):
        return
    check_updates(training)
    go_on = f"go on with `stormlit resume {training.directory.name}"
    if failed:
        what = failure or "the environments of another process failed"
        try:
            save_snapshot(training)
        except SaveError as error:
            raise EnvironmentCrashError(f"{what}; besides, {error}") from failure
        raise EnvironmentCrashError(f"{what}; the run is saved: {go_on} env.max_restarts=N`") from failure
    if not stopped_by:
        return save_or_go_on(training)
    save_snapshot(training)
    raise Stopped(stopped_by, f"after step {env_steps:,}; {go_on}`")


def asked(training: Training, failed: bool) -> tuple[int, bool, bool]:
    """The same in every process: the signal that has come to any (0: none), whether the clock wants a checkpoint, and
    whether environments have failed.
    """
    received, due = training.signals.received, training.clock.due()
    if training.fabric.world_size > 1:
        here = torch.tensor([received, due, failed], device=training.fabric.device)
        received, due, failed = training.fabric.all_reduce(here, reduce_op="max").tolist()  # type: ignore[union-attr]
    return received, bool(due), bool(failed)


def check_updates(training: Training) -> None:
    """Raise ``TrainingError`` if either module's updates were skipped too often in a row; waits for the device."""
    for learner in (training.world_model_learner, training.agent_learner):
        learner.check()

"""The training loop: collect real steps, fit the world model, improve the agent in imagination.

Only weights flow back from learning to acting, through the player that the collector holds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from stormlit.data import Batch, Trajectory
from stormlit.storm.learner import Learner, Update
from stormlit.storm.training import Training


def fit(training: Training, after_step: Callable[[], None]) -> None:
    """Train until the plan's budget of environment steps is taken.

    after_step: called after each step of every environment and the updates it owes; what it raises ends the training.
    Raises ``TrainingError`` when losses stay non-finite.
    """
    plan = training.plan
    while training.progress.env_steps < plan.env_steps:
        training.collector.step_async(select_action(training))
        if plan.overlap:  # environments are stepped and updates made at the same time; the newest step joins later
            try:
                learn(training)
            except Exception:  # what is saved when memory runs out must not be in the middle of a step
                collect(training)
                raise
        collect(training)
        if not plan.overlap:
            learn(training)
        after_step()
    check_updates(training)


def select_action(training: Training) -> np.ndarray:
    """The next action of every environment, (N, *shape): random at first, then the agent's."""
    with training.fabric.autocast():
        return training.collector.select_action(random=training.in_warmup)


def collect(training: Training) -> None:
    """Wait for the step of every environment, and remember what happened."""
    episodes = training.collector.step_wait()
    training.progress.env_steps += training.steps_at_once
    training.progress.episodes += len(episodes)
    for episode in episodes:
        if not episode.crashed:  # how the others would have ended is unknown
            training.returns.append((training.progress.env_steps, episode.episode_return))
            training.metrics.add("episode", {"return": episode.episode_return, "length": float(episode.length)})


def learn(training: Training) -> None:
    """All the updates that one more step of every environment owes."""
    plan, steps = training.plan, training.steps_at_once
    if training.progress.env_steps <= plan.warmup_steps:
        return
    for _ in range(plan.world_model.owed(steps)):
        fit_world_model(training)
    for _ in range(plan.agent.owed(steps)):
        improve_agent(training)


def fit_world_model(training: Training) -> None:
    """One update of the world model on windows of real experience."""
    update_world_model(training, *training.experience.sample_batch())


def improve_agent(training: Training) -> None:
    """One update of the agent on rollouts imagined from real contexts."""
    update_agent(training, imagine(training, training.experience.sample_contexts()))


def imagine(training: Training, contexts: Batch) -> Trajectory:
    """Rollouts of the policy from the contexts."""
    with training.fabric.autocast():
        return training.imagine(contexts)


def update_world_model(training: Training, batch: Batch, drawn: Tensor | None = None) -> None:
    """One optimiser step of the world model.  drawn: the batch's windows, if their losses are of use."""
    done = update(training, training.world_model_learner, batch)
    if drawn is not None and done.windows is not None:
        training.experience.learned(drawn, done.windows)
    training.progress.world_model_updates += 1


def update_agent(training: Training, trajectory: Trajectory) -> None:
    """One optimiser step of the agent; the slow critic follows."""
    training.agent.update_slow_critic(update(training, training.agent_learner, trajectory).finite)
    training.progress.agent_updates += 1


def update(training: Training, learner: Learner, batch: Batch | Trajectory) -> Update:
    """One optimiser step of either module."""
    done = learner.update(batch, training.progress.env_steps / training.plan.env_steps)
    training.metrics.add(learner.name, done.metrics, valid=done.finite)
    return done


def check_updates(training: Training) -> None:
    """Raise ``TrainingError`` if either module's updates were skipped too often in a row; waits for the device."""
    for learner in (training.world_model_learner, training.agent_learner):
        learner.check()

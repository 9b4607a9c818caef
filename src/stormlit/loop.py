"""The training loop: collect real steps, fit the world model, improve the agent in imagination.

Only weights flow back from learning to acting, through the player that the collector holds.
"""

from __future__ import annotations

import torch

from stormlit.housekeeping import evaluate_agent, log_metrics, make_media
from stormlit.imagine import imagine
from stormlit.learner import Learner
from stormlit.signals import Stopped
from stormlit.snapshot import save_or_go_on, save_snapshot
from stormlit.training import Training
from stormlit.types import Batch, Trajectory


def fit(training: Training) -> None:
    """Train until ``loop.env_steps`` steps are taken.

    Raises ``TrainingError`` when losses stay non-finite, ``Stopped`` when a signal asked for the end.
    """
    while training.progress.env_steps < training.config.loop.env_steps:
        stepped = collect(training)
        if training.progress.env_steps > training.warmup_steps:
            for _ in range(training.schedules.world_model.owed(stepped)):
                fit_world_model(training)
            for _ in range(training.schedules.agent.owed(stepped)):
                improve_agent(training)
        keep_house(training)


def collect(training: Training) -> int:
    """Take one step in every environment; returns the environment steps taken over all processes."""
    random = training.progress.env_steps < training.warmup_steps
    with training.fabric.autocast():
        episodes = training.collector.step(random=random)
    stepped = training.envs.num_envs * training.fabric.world_size
    training.progress.env_steps += stepped
    for episode in episodes:
        training.progress.episodes += 1
        training.latest_return = episode.episode_return
        training.metrics.add("episode", {"return": episode.episode_return, "length": float(episode.length)})
    training.bar.advance(stepped)
    training.bar.show(training.latest_return, "random" if random else "train")
    return stepped


def fit_world_model(training: Training) -> None:
    """One update of the world model on windows of real experience."""
    # Windows are shorter only while the buffer itself is.
    length = min(training.config.loop.batch_length, training.replay.rows)
    batch = training.replay.sample(training.batch_size, length).to(training.fabric.device)
    update(training, training.world_model_learner, batch)
    training.progress.world_model_updates += 1


def improve_agent(training: Training) -> None:
    """One update of the agent on rollouts imagined from real contexts."""
    settings = training.config.imagination
    length = min(settings.context_length, training.replay.rows)
    context = training.replay.sample(training.imagined_rows, length).to(training.fabric.device)
    with training.fabric.autocast():
        trajectory = imagine(
            training.world_model,
            training.agent,
            context,
            horizon=settings.horizon,
            from_posterior=settings.start == "posterior",
            hard_ends=settings.ends == "hard",
        )
    if update(training, training.agent_learner, trajectory):
        training.agent.update_slow_critic()
    training.progress.agent_updates += 1


def update(training: Training, learner: Learner, batch: Batch | Trajectory) -> bool:
    """One optimiser step of either module; False if it had to be skipped, which is counted."""
    training.metrics.add(learner.name, learner.update(batch))
    skipped = learner.nonfinite_in_a_row > 0
    training.progress.nonfinite_updates += skipped
    return not skipped


def keep_house(training: Training) -> None:
    """Log, draw, evaluate and save, whenever due; raises ``Stopped`` when a signal has asked for it."""
    env_steps, schedules = training.progress.env_steps, training.schedules
    if schedules.log.due(env_steps):
        log_metrics(training)
    if schedules.media.due(env_steps):
        make_media(training)
    if schedules.evaluation.due(env_steps):
        evaluate_agent(training)
    stopped_by, minutes_passed = asked(training)
    save = schedules.checkpoint.due(env_steps) or minutes_passed
    if stopped_by:
        save_snapshot(training)
        raise Stopped(stopped_by, f"after step {env_steps:,}; go on with `stormlit resume {training.directory.name}`")
    if save:
        save_or_go_on(training)


def asked(training: Training) -> tuple[int, bool]:
    """The signal that has come (0: none), and whether the clock wants a checkpoint: the same in every process."""
    received, due = training.signals.received, training.clock.due()
    if training.fabric.world_size > 1:
        here = torch.tensor([received, due], device=training.fabric.device)
        received, due = training.fabric.all_reduce(here, reduce_op="max").tolist()  # type: ignore[union-attr]
    return received, bool(due)

"""The training loop: collect real steps, fit the world model, improve the agent in imagination.

Only weights flow back from learning to acting, through the player that the collector holds.
"""

from __future__ import annotations

from stormlit.housekeeping import evaluate_agent, log_metrics, make_media
from stormlit.imagine import imagine
from stormlit.learner import Learner
from stormlit.snapshot import save_snapshot
from stormlit.training import Training
from stormlit.types import Batch, Trajectory


def fit(training: Training) -> None:
    """Train until ``loop.env_steps`` steps are taken; raises ``TrainingError`` when losses stay non-finite."""
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
    batch = experience(training, training.batch_size, training.demonstrated_windows, length)
    update(training, training.world_model_learner, batch)
    training.progress.world_model_updates += 1


def experience(training: Training, windows: int, demonstrated: int, length: int) -> Batch:
    """Windows of real experience, and behind them those of demonstrations, if there are any."""
    device = training.fabric.device
    batch = training.replay.sample(windows, length).to(device)
    if training.demonstrations is None:
        return batch
    return Batch.cat(batch, training.demonstrations.sample(demonstrated, length).to(device))


def improve_agent(training: Training) -> None:
    """One update of the agent on rollouts imagined from real contexts."""
    settings = training.config.imagination
    length = min(settings.context_length, training.replay.rows)
    context = experience(training, training.imagined_rows, training.demonstrated_contexts, length)
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
    """Log, draw, evaluate and save, whenever due."""
    env_steps, schedules = training.progress.env_steps, training.schedules
    if schedules.log.due(env_steps):
        log_metrics(training)
    if schedules.media.due(env_steps):
        make_media(training)
    if schedules.evaluation.due(env_steps):
        evaluate_agent(training)
    if schedules.checkpoint.due(env_steps):
        save_snapshot(training)

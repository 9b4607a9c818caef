"""The training loop: collect real steps, fit the world model, improve the agent in imagination.

Only weights flow back from learning to acting, through the player that the collector holds.
"""

from __future__ import annotations

from collections.abc import Callable

from stormlit.storm.training import Training


def fit(training: Training, after_step: Callable[[], None]) -> None:
    """Train until the plan's budget of environment steps is taken.

    after_step: called after each step of every environment and the updates it owes; what it raises ends the training.
    Raises ``TrainingError`` when losses stay non-finite.
    """
    plan = training.plan
    while training.progress.env_steps < plan.env_steps:
        with training.fabric.autocast():
            action = training.collector.select_action(random=training.progress.env_steps < plan.warmup_steps)
        training.collector.step_async(action)
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
    """All the updates that one more step of every environment owes, once the random start is over and there is one
    window of full length to learn from.
    """
    plan, steps = training.plan, training.steps_at_once
    if training.progress.env_steps <= plan.warmup_steps or not training.experience.holds_a_window:
        return
    for _ in range(plan.world_model.owed(steps)):
        fit_world_model(training)
    for _ in range(plan.agent.owed(steps)):
        improve_agent(training)


def fit_world_model(training: Training) -> None:
    """One update of the world model on windows of real experience."""
    batch, drawn = training.experience.sample_batch()
    done = training.progress.env_steps / training.plan.env_steps
    update = training.world_model_learner.update(batch, done)
    if drawn is not None and update.windows is not None:
        training.replay.learned(drawn, update.windows)
    training.metrics.add("world_model", update.metrics, valid=update.finite)
    training.progress.world_model_updates += 1


def improve_agent(training: Training) -> None:
    """One update of the agent on rollouts imagined from real contexts; the slow critic follows."""
    contexts = training.experience.sample_contexts()
    with training.fabric.autocast():
        trajectory = training.imagine(contexts)
    done = training.progress.env_steps / training.plan.env_steps
    update = training.agent_learner.update(trajectory, done)
    training.agent.update_slow_critic(update.finite)
    training.metrics.add("agent", update.metrics, valid=update.finite)
    training.progress.agent_updates += 1


def check_updates(training: Training) -> None:
    """Raise ``TrainingError`` if either module's updates were skipped too often in a row; waits for the device."""
    training.world_model_learner.check()
    training.agent_learner.check()

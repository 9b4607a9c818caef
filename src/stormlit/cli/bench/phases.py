"""The phases of a training step, each alone, with a replay buffer filled by the random policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import torch

from stormlit.cli.bench.counting import OperationCounter
from stormlit.config.schema import Config
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.runs.estimate import settle_threads
from stormlit.storm.training import Ratio, Training

SAMPLE_BATCH, WORLD_MODEL, SAMPLE_CONTEXTS = "sample batch", "world-model update", "sample contexts"
IMAGINATION, AGENT, ACTING, STEPPING = "imagination", "agent update", "acting", "environment step"
COLLECT = (ACTING, STEPPING)
FIT_WORLD_MODEL = (SAMPLE_BATCH, WORLD_MODEL)
IMPROVE_AGENT = (SAMPLE_CONTEXTS, IMAGINATION, AGENT)
# In the order of a training step.
PHASES = (*COLLECT, *FIT_WORLD_MODEL, *IMPROVE_AGENT)


@contextmanager
def prepared(config: Config) -> Iterator[Phases]:
    """A training after its random start, and its phases; nothing is written.

    The buffer holds ``loop.warmup_steps`` environment steps, or more where windows are longer.
    Raises what building a training raises.
    """
    training = build_training(config, make_fabric(config))
    config = settle_threads(config, training.fabric.device, training.world_model, training.agent)
    collector = training.collector
    try:
        longest = max(config.loop.batch_length, config.imagination.context_length)
        for _ in range(max(training.plan.warmup_steps // training.envs.num_envs, longest)):
            collector.step(collector.select_action(random=True))
        yield Phases(training, config)
    finally:
        training.envs.close()


class Phases:
    """Runs each phase of a training, on what the phases before it left.

    training: one whose replay buffer holds windows of full length.
    """

    def __init__(self, training: Training, config: Config) -> None:
        self.training, self.config, self._collector = training, config, training.collector
        self.threads = torch.get_num_threads()
        self._action = training.envs.action_space.zeros(training.envs.num_envs)
        self._batch, _ = training.experience.sample_batch()
        self._contexts = training.experience.sample_contexts()
        self._imagine()
        self._functions: dict[str, Callable[[], object]] = {
            ACTING: self._act,
            STEPPING: self._step,
            SAMPLE_BATCH: self._sample_batch,
            WORLD_MODEL: lambda: training.world_model_learner.update(self._batch),
            SAMPLE_CONTEXTS: self._sample_contexts,
            IMAGINATION: self._imagine,
            AGENT: lambda: training.agent.update_slow_critic(training.agent_learner.update(self._trajectory).finite),
        }
        self._step_begun = False
        # The context that acting reads is full from now on, but for the beginnings of episodes.
        for _ in range(training.collector.player.context_length):
            self._act()
            self._step()

    def run(self, phase: str) -> None:
        """Run one of ``PHASES`` once."""
        self._functions[phase]()

    def count(self, phase: str) -> OperationCounter:
        """Run a phase once; returns what it launched."""
        with OperationCounter() as counter:
            self.run(phase)
        return counter

    def times_per_env_step(self, phase: str) -> float:
        """How often the training loop runs a phase for every environment step."""
        settings = self.config.loop
        if phase in COLLECT:
            return 1 / self.training.envs.num_envs
        if phase in FIT_WORLD_MODEL:
            return settings.world_model_updates_per_env_step
        return settings.agent_updates_per_env_step

    @property
    def whole_env_steps(self) -> int:
        """Environment steps after which every update they owe is a whole one (fractions to the nearest 1/100)."""
        settings, num_envs = self.config.loop, self.training.envs.num_envs
        rates = settings.world_model_updates_per_env_step, settings.agent_updates_per_env_step
        return num_envs * math.lcm(*(Fraction(rate * num_envs).limit_denominator(100).denominator for rate in rates))

    def run_whole(self) -> None:
        """Take ``whole_env_steps`` with all the updates they owe, as ``loop.fit`` does."""
        settings, num_envs = self.config.loop, self.training.envs.num_envs
        owed = [
            (FIT_WORLD_MODEL, Ratio(settings.world_model_updates_per_env_step)),
            (IMPROVE_AGENT, Ratio(settings.agent_updates_per_env_step)),
        ]
        for _ in range(self.whole_env_steps // num_envs):
            updates = [phase for phases, ratio in owed for phase in phases * ratio.owed(num_envs)]
            self.run(ACTING)
            if settings.overlap:
                self._begin_step()
            for phase in (*updates, STEPPING) if settings.overlap else (STEPPING, *updates):
                self.run(phase)

    def _act(self) -> None:
        with self.training.fabric.autocast():
            self._action = self._collector.select_action(random=False)

    def _begin_step(self) -> None:
        self._collector.step_async(self._action)
        self._step_begun = True

    def _step(self) -> None:
        if not self._step_begun:
            self._begin_step()
        self._step_begun = False
        self._collector.step_wait()

    def _sample_batch(self) -> None:
        self._batch, _ = self.training.experience.sample_batch()

    def _sample_contexts(self) -> None:
        self._contexts = self.training.experience.sample_contexts()

    def _imagine(self) -> None:
        with self.training.fabric.autocast():
            self._trajectory = self.training.imagine(self._contexts)

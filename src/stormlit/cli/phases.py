"""The phases of a training step, each alone: to be timed, and to have the operations counted that they launch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from stormlit.config.schema import Config
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.runs.estimate import settle_threads
from stormlit.storm.loop import collect, fit
from stormlit.storm.training import Training

ACTING, STEPPING = "acting", "environment step"
SAMPLE_BATCH, WORLD_MODEL = "sample batch", "world-model update"
SAMPLE_CONTEXTS, IMAGINATION, AGENT = "sample contexts", "imagination", "agent update"
# In the order of a training step.
PHASES = (ACTING, STEPPING, SAMPLE_BATCH, WORLD_MODEL, SAMPLE_CONTEXTS, IMAGINATION, AGENT)
WHOLE = "whole step"

# What the host has to wait for on a GPU: their results, or the sizes of their results, depend on values.
SYNCING = frozenset(
    {
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
        *("nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique", "_unique2", "bincount"),
        "multinomial",  # checks its probabilities first
    }
)
# Views that the schema does not tell, and what computes nothing.
SILENT = frozenset(("_unsafe_view", "is_same_size", "empty", "empty_like", "empty_strided", "new_empty_strided"))


class OperationCounter(TorchDispatchMode):
    """Counts what is dispatched inside a ``with`` block; no GPU is needed, as the same is dispatched on every device.

    operations: how often each operation ran. Views launch nothing and are left out; fused and ``foreach`` operations
    count once, and compiled functions run uncompiled.  syncs: those that make the host wait for a GPU, on whichever
    device they ran. Copies between devices only show where there are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func._schema.name).removeprefix("aten::")
        if not (func.is_view or name in SILENT or func.namespace == "profiler"):
            self.operations[name] += 1
            if _syncs(name, args, kwargs, result):
                self.syncs[name] += 1
        return result


def _syncs(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
    if name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        waits = source.device.type != "cpu" or not kwargs.get("non_blocking", len(args) > 2 and args[2])
        return source.device.type != result.device.type and waits
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in SYNCING


@contextmanager
def prepared(config: Config) -> Iterator[Phases]:
    """A training after its random start, and its phases; nothing is written.

    The buffer holds ``loop.warmup_steps`` environment steps, or more where windows are longer.
    Raises what building a training raises.
    """
    training = build_training(config, make_fabric(config))
    config = settle_threads(config, training.fabric.device, training.world_model, training.agent)
    try:
        longest = max(config.loop.batch_length, config.imagination.context_length)
        for _ in range(max(training.plan.warmup_steps // training.envs.num_envs, longest)):
            training.collector.step_async(training.collector.select_action(random=True))
            collect(training)
        yield Phases(training, config)
    finally:
        training.envs.close()


class Phases:
    """Runs each phase of a training, on what the phases before it left.

    training: one whose replay buffer holds windows of full length.
    """

    def __init__(self, training: Training, config: Config) -> None:
        self.training, self.config = training, config
        self.threads = torch.get_num_threads()
        self.functions: dict[str, Callable[[], object]] = {
            ACTING: self._act,
            STEPPING: lambda: training.collector.step(self._action),
            SAMPLE_BATCH: self._sample_batch,
            WORLD_MODEL: lambda: training.world_model_learner.update(self._batch),
            SAMPLE_CONTEXTS: self._sample_contexts,
            IMAGINATION: self._imagine,
            AGENT: lambda: training.agent.update_slow_critic(training.agent_learner.update(self._trajectory).finite),
            WHOLE: self._whole_step,
        }
        for phase in (SAMPLE_BATCH, SAMPLE_CONTEXTS, IMAGINATION):
            self.run(phase)
        # The context that acting reads is full from now on, but for the beginnings of episodes.
        for _ in range(training.collector.player.context_length):
            self.run(ACTING)
            self.run(STEPPING)

    def run(self, phase: str) -> None:
        """Run one of ``PHASES``, or ``WHOLE``, once."""
        self.functions[phase]()

    def count(self, phase: str) -> OperationCounter:
        """Run a phase once; returns what it launched."""
        # A dispatch mode belongs to a thread; autograd has threads of its own for GPUs.
        with torch.autograd.set_multithreading_enabled(False), OperationCounter() as counter:
            self.run(phase)
        return counter

    def times_per_env_step(self, phase: str) -> float:
        """How often the training loop runs a phase for every environment step."""
        if phase in (ACTING, STEPPING):
            return 1 / self.training.envs.num_envs
        plan = self.training.plan
        ratio = plan.world_model if phase in (SAMPLE_BATCH, WORLD_MODEL) else plan.agent
        return ratio.updates_per_env_step

    @property
    def whole_env_steps(self) -> int:
        """Environment steps after which every update they owe is a whole one (fractions to the nearest 1/100)."""
        num_envs, plan = self.training.envs.num_envs, self.training.plan
        rates = plan.world_model.updates_per_env_step, plan.agent.updates_per_env_step
        return num_envs * math.lcm(*(Fraction(rate * num_envs).limit_denominator(100).denominator for rate in rates))

    def _whole_step(self) -> None:
        """``whole_env_steps`` of the training loop, with all the updates they owe."""
        training = self.training
        end = training.progress.env_steps + self.whole_env_steps
        training.plan = dataclasses.replace(training.plan, env_steps=end, warmup_steps=0)
        fit(training, after_step=lambda: None)

    def _act(self) -> None:
        with self.training.fabric.autocast():
            self._action = self.training.collector.select_action(random=False)

    def _sample_batch(self) -> None:
        self._batch, _ = self.training.experience.sample_batch()

    def _sample_contexts(self) -> None:
        self._contexts = self.training.experience.sample_contexts()

    def _imagine(self) -> None:
        with self.training.fabric.autocast():
            self._trajectory = self.training.imagine(self._contexts)

"""The data that flows between the parts: environment -> replay -> world model -> imagination -> agent.

Symbols used in every shape comment of the package:

    B batch        T time            N imagined rows (or environments)   H horizon
    G groups       K classes         Z latent width (G * K if categorical)  D hidden width
    E embedding    F agent state     A actions    V vector width        C, Y, X image channels, rows, columns

One timing rule (STORM's): ``reward[t]`` and ``terminated[t]`` follow ``action[t]``, which was taken at ``obs[t]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stormlit.errors import PartError

if TYPE_CHECKING:  # an environment's process needs these types too, and not the seconds that PyTorch takes to import
    import torch
    from torch import Tensor

PartNode = str | Mapping[str, Any]
"""A component node of the configuration: ``{name: cnn, **options}``, or the name alone."""


@dataclass(slots=True)
class Episode:
    """One finished episode, in the environment's own (untransformed) rewards.

    ``length`` is in environment steps (after frame skip), ``seed`` is what the episode was reset with, ``last_reward``
    is the part of the return that came with the last step. ``crashed``: the environment died in the step after these,
    whose outcome is unknown, and the episode counts as truncated.
    """

    env_index: int
    seed: int
    episode_return: float
    length: int
    truncated: bool
    last_reward: float
    crashed: bool = False


@dataclass(slots=True)
class EnvStep:
    """What came of one vector of actions in N environments.

    obs: (N, *shape) as stored (see ``observation_space``), (N, Y, X, C) uint8 for images: the frame to act on next;
    after an episode's end it is the new episode's first frame.
    reward: (N,) float32, transformed as configured; what the world model learns.
    terminated: (N,) bool, the environment ended, or a life was lost where life loss counts as an end.
    is_first: (N,) bool, ``obs`` is the first frame of an episode.
    episodes: the episodes that ended with this step.
    """

    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    is_first: np.ndarray
    episodes: list[Episode] = field(default_factory=list)


class TensorRecord:
    """A dataclass with slots, whose fields are all tensors."""

    __slots__: tuple[str, ...] = ()

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in their order."""
        return tuple([getattr(self, name) for name in self.__slots__])

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A new record of what ``function`` makes of each field."""
        return type(self)(*map(function, self.tensors()))


@dataclass(slots=True)
class Batch(TensorRecord):
    """B windows of T consecutive environment steps.

    obs: (B, T, C, Y, X) uint8, a channels-last view of the stored images; observations of any other kind as they are
    stored, (B, T, *shape), see ``stormlit.spaces``.
    action: (B, T) int64, or (B, T, dims), see ``stormlit.spaces``.  reward: (B, T) float32.
    terminated: (B, T) bool.  is_first: (B, T) bool, the row begins an episode.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    is_first: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy to ``device``, see ``to_device``."""
        return Batch(*[to_device(tensor, device) for tensor in self.tensors()])

    @staticmethod
    def cat(first: Batch, second: Batch) -> Batch:
        """The windows of both, of the same length and on the same device, those of ``first`` before the others."""
        import torch

        if first.obs.ndim == 5:  # joined as they are stored, so that the frames stay a channels-last view
            obs = torch.cat([batch.obs.permute(0, 1, 3, 4, 2) for batch in (first, second)]).permute(0, 1, 4, 2, 3)
        else:
            obs = torch.cat([first.obs, second.obs])
        return Batch(obs, *map(torch.cat, list(zip(first.tensors(), second.tensors(), strict=True))[1:]))


@dataclass(slots=True)
class Trajectory(TensorRecord):
    """N imagined rollouts of H steps; state t is what the policy saw before ``action[:, t]``.

    latent: (N, H + 1, Z).  hidden: (N, H + 1, D).  action: (N, H) int64, or (N, H, dims).
    reward: (N, H) float32, predicted for ``action[:, t]``.
    continuation: (N, H) float32 in [0, 1], probability that the episode goes on after ``action[:, t]``.
    weight: (N, H) float32 in [0, 1], probability that state t is still inside its episode.
    """

    latent: Tensor
    hidden: Tensor
    action: Tensor
    reward: Tensor
    continuation: Tensor
    weight: Tensor

    def clone(self) -> Trajectory:
        """The same in memory of its own."""
        return self.map(lambda tensor: tensor.clone())


@dataclass(slots=True)
class WorldState:
    """Where an imagined (or real) trajectory stands: what the policy sees, and the memory behind it.

    latent: (N, Z).  hidden: (N, D).  memory: the sequence model's cache.
    """

    latent: Tensor
    hidden: Tensor
    memory: Any


@dataclass(slots=True)
class Reading:
    """What the world model makes of B windows of T steps while it is trained; what an objective sees.

    embed: (B, T, E).  posterior: of z_t, (B, T, ...).  latent: (B, T, Z), drawn from it.
    hidden: (B, T, D), after the action of each step.  prior: of z_{t+1}, (B, T, ...).
    Posterior and prior are in the form that the latent gives them, which it alone reads.
    """

    batch: Batch
    embed: Tensor
    posterior: Tensor
    latent: Tensor
    hidden: Tensor
    prior: Tensor


@dataclass(slots=True)
class Losses:
    """Named loss terms with a scale each, and detached metrics.

    terms, scales: the same keys; a scale that is learned is a tensor.  metrics: scalars that carry no gradient.
    windows: (B,) detached, the loss of each window alone, if the world model was asked for it.
    """

    terms: dict[str, Tensor]
    scales: Mapping[str, float | Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    windows: Tensor | None = None

    def added(self, others: Losses) -> Losses:
        """These terms and metrics and those of ``others``; raises ``PartError`` for a name that both have."""
        for name in (*others.terms, *others.metrics):
            if name in self.terms or name in self.metrics:
                raise PartError(f"two loss terms or metrics of the world model are called '{name}': rename one")
        return Losses(
            {**self.terms, **others.terms}, {**self.scales, **others.scales}, {**self.metrics, **others.metrics}
        )

    @property
    def total(self) -> Tensor:
        """The scaled sum, a scalar; raises ``KeyError`` if a term has no scale or a scale no term."""
        if self.terms.keys() != self.scales.keys():
            raise KeyError(f"loss terms {sorted(self.terms)} and scales {sorted(self.scales)} differ")
        import torch

        terms, scales = list(self.terms.values()), [self.scales[name] for name in self.terms]
        numbers = [scale for scale in scales if not isinstance(scale, torch.Tensor)]
        learned = len(numbers) < len(scales)
        scaled = [term * scale for term, scale in zip(terms, scales, strict=True)] if learned else None
        return torch.stack(torch._foreach_mul(terms, numbers) if scaled is None else scaled).sum()

    def log(self, total: Tensor) -> dict[str, Tensor]:
        """Every term as ``loss/<name>``, the total (what ``total`` has returned), and the metrics; all detached."""
        logged = {f"loss/{name}": term.detach() for name, term in self.terms.items()}
        return {**logged, "loss/total": total.detach(), **self.metrics}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to ``device``; from the host to a GPU through pinned memory, so that the host goes on while it copies."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

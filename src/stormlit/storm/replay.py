"""The replay buffer, a ring of environment steps sampled in windows, and what both modules learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from stormlit.data import Batch, PartNode, TensorRecord, to_device
from stormlit.nn.building import build_part
from stormlit.nn.samplers import UniformSampler
from stormlit.ops.spaces import channels_first
from stormlit.registry import Option
from stormlit.spaces import ActionSpace, ObservationSpace


@dataclass(slots=True)
class ReplayRows(TensorRecord):
    """A stretch of consecutive rows of the ring, oldest first; what a checkpoint stores.

    obs: (R, N, *shape), (R, N, Y, X, C) uint8 of images.  action: (R, N, *shape) int64 or float32.
    reward: (R, N) float32.  terminated, is_first: (R, N) bool.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    is_first: Tensor


class ReplayBuffer:
    """The last ``capacity`` environment steps of N environments.

    Row r holds one step of every environment; once the ring is full the oldest row is overwritten. Windows are taken in
    order of age, so none contains both the newest and the oldest row; ``is_first`` tells where episodes begin inside.

    capacity: environment steps in all.  observations: what they are; (Y, X, C) is short for images.
    device: where frames are kept.
    seed: of the generator that draws windows.  actions: what they are, None: discrete.
    The released code has episode_starts="ignored" and order="storage" (weipu-zhang/STORM, replay_buffer.py).
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        observations: ObservationSpace | tuple[int, ...],
        device: torch.device,
        seed: int,
        actions: ActionSpace | None = None,
        *,
        episode_starts: Annotated[
            Literal["marked", "ignored"],
            Option("whether sampled windows tell where an episode begins inside them, which cuts memory and KL there"),
        ] = "marked",
        order: Annotated[
            Literal["age", "storage"],
            Option("windows in the order of age, or of storage, across the ring's seam once it is full"),
        ] = "age",
        sampler: Annotated[
            PartNode, Option("how likely each window is to be drawn for a world-model update", part="sampler")
        ] = "uniform",
    ) -> None:
        self.num_envs, self.device = num_envs, device
        self.episode_starts, self.order = episode_starts, order
        self.row_capacity = max(capacity // num_envs, 1)
        shape = (self.row_capacity, num_envs)
        self.observation_space = ObservationSpace.of(observations)
        obs = torch.from_numpy(self.observation_space.zeros())  # one of them, for shape and dtype
        action = torch.from_numpy((actions or ActionSpace.of(1)).zeros())
        self.storage = ReplayRows(
            obs=torch.empty(*shape, *obs.shape, dtype=obs.dtype, device=device),
            action=torch.empty(*shape, *action.shape, dtype=action.dtype, device=device),
            reward=torch.empty(shape, dtype=torch.float32, device=device),
            terminated=torch.empty(shape, dtype=torch.bool, device=device),
            is_first=torch.empty(shape, dtype=torch.bool, device=device),
        )
        self.total_rows = 0  # ever written, so also the number of the next row
        self.generator = torch.Generator().manual_seed(seed)
        weigher = build_part("sampler", sampler, key="replay.sampler")
        self.needs_losses: bool = weigher.needs_losses
        self.priorities: Priorities | None = None
        if not isinstance(weigher, UniformSampler):
            self.priorities = Priorities(weigher, self.row_capacity, num_envs)

    @property
    def rows(self) -> int:
        """Rows held now."""
        return min(self.total_rows, self.row_capacity)

    @property
    def steps(self) -> int:
        """Environment steps held now."""
        return self.rows * self.num_envs

    @property
    def nbytes(self) -> int:
        """Memory taken when full, in bytes."""
        return sum(t.nbytes for t in self.storage.tensors())

    def append(self, obs: Any, action: Any, reward: Any, terminated: Any, is_first: Any) -> None:
        """Store one step of every environment: arrays as stored, (N, *shape) or (N,) each."""
        row = self.total_rows % self.row_capacity
        for stored, value in zip(self.storage.tensors(), (obs, action, reward, terminated, is_first), strict=True):
            stored[row] = to_device(torch.as_tensor(value), self.device)
        if self.priorities is not None:
            self.priorities.forget(row)
        self.total_rows += 1

    def sample(self, batch_size: int, length: int, generator: torch.Generator | None = None) -> Batch:
        """Draw windows of ``length`` consecutive steps uniformly, each of one environment; one gather for the frames.

        generator: of the draw, so that looking into the buffer does not change what training draws; None: its own.
        Raises ``ValueError`` when fewer rows than ``length`` are held.
        """
        starts = self._starts(length)
        choice = torch.randint(len(starts) * self.num_envs, (batch_size,), generator=generator or self.generator)
        return self._windows(starts[choice // self.num_envs] * self.num_envs + choice % self.num_envs, length)

    def draw(self, batch_size: int, length: int) -> tuple[Batch, Tensor | None]:
        """``sample`` by the sampler's weights, and what ``learned`` has to be told; None if they are all the same."""
        if self.priorities is None:
            return self.sample(batch_size, length), None
        drawn = self.priorities.draw(self._starts(length), batch_size, self.generator)
        return self._windows(drawn, length), drawn

    def learned(self, drawn: Tensor, losses: Tensor) -> None:
        """Note the losses of a batch whose first windows are those that ``draw`` has given."""
        if self.priorities is not None:
            self.priorities.learned(drawn, losses[: len(drawn)])

    def _starts(self, length: int) -> Tensor:
        """The rows (S,) that a window of that length can begin with; raises ``ValueError`` if there are none."""
        if length > self.rows:
            raise ValueError(f"a window of {length} steps is longer than the {self.rows} rows in the replay buffer")
        first = self.total_rows - self.rows if self.order == "age" else 0
        return (first + torch.arange(self.rows - length + 1)) % self.row_capacity

    def _windows(self, drawn: Tensor, length: int) -> Batch:
        """The windows whose first steps are number ``drawn`` (B,) of the storage, row * num_envs + environment."""
        batch_size = len(drawn)
        row = ((drawn // self.num_envs).unsqueeze(1) + torch.arange(length)) % self.row_capacity
        index = to_device((row * self.num_envs + (drawn % self.num_envs).unsqueeze(1)).flatten(), self.device)
        obs, action, reward, terminated, is_first = [
            stored.flatten(0, 1).index_select(0, index).unflatten(0, (batch_size, length))
            for stored in self.storage.tensors()
        ]
        if self.episode_starts == "ignored":
            is_first = torch.zeros_like(is_first)
        return Batch(channels_first(self.observation_space, obs), action, reward, terminated, is_first)

    def read(self, start: int, end: int) -> ReplayRows:
        """Rows number ``start`` to ``end`` (counted over all rows ever written), on the CPU.

        Raises ``ValueError`` when some are not held any more, or not yet.
        """
        if not self.total_rows - self.rows <= start <= end <= self.total_rows:
            raise ValueError(f"rows {start} to {end} are not all in the buffer")
        index = torch.arange(start, end, device=self.device) % self.row_capacity
        return self.storage.map(lambda stored: stored.index_select(0, index).cpu())

    def restore(self, rows: ReplayRows, end: int) -> None:
        """Put back rows that end just before row number ``end``; the next row written is number ``end``."""
        count = rows.obs.shape[0]
        index = torch.arange(end - count, end, device=self.device) % self.row_capacity
        for stored, value in zip(self.storage.tensors(), rows.tensors(), strict=True):
            stored[index] = value.to(self.device)
        self.total_rows = end

    def state_dict(self) -> dict[str, Any]:
        """Everything but the rows themselves, which are saved apart (see ``checkpoint``)."""
        priorities = {} if self.priorities is None else {"priorities": self.priorities.state_dict(self.rows)}
        return {"total_rows": self.total_rows, "generator": self.generator.get_state(), **priorities}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total_rows = int(state["total_rows"])
        self.generator.set_state(state["generator"])
        if self.priorities is not None and "priorities" in state:  # a run may begin to have some on the way
            self.priorities.load_state_dict(state["priorities"])


NEVER = float("inf")  # the loss of a window that was never drawn


class Priorities:
    """How often each window was drawn and what its loss was then; a window is known by the step it begins with.

    All of it is on the CPU, like the generator that draws: losses that come from a GPU are waited for.

    sampler: gives windows their weights, see ``checks.interfaces.Sampler``.  rows, num_envs: of the ring.
    """

    def __init__(self, sampler: Any, rows: int, num_envs: int) -> None:
        self.sampler, self.num_envs = sampler, num_envs
        self.uses, self.loss = torch.zeros(rows, num_envs), torch.full((rows, num_envs), NEVER)

    def forget(self, row: int) -> None:
        """A new row of steps stands in place of an old one."""
        self.uses[row], self.loss[row] = 0.0, NEVER

    def draw(self, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw windows, with replacement, and count them as used.

        rows: (S,) int64, the rows that a window can begin with, any environment.
        Returns (count,) int64, ``row * num_envs + environment`` of each one's first step.
        """
        weights = self.sampler(self.uses[rows].flatten(), self.loss[rows].flatten())
        upto = weights.double().cumsum(0)
        at = torch.rand(count, generator=generator, dtype=torch.float64) * upto[-1]
        choice = torch.searchsorted(upto, at, right=True).clamp(max=len(upto) - 1)
        drawn = rows[choice // self.num_envs] * self.num_envs + choice % self.num_envs
        self.uses.view(-1).index_add_(0, drawn, torch.ones(count))
        return drawn

    def learned(self, drawn: Tensor, losses: Tensor) -> None:
        """Note the losses (count,) of windows that were drawn; the larger one of a window that was drawn twice.

        Losses that are not finite, of an update that was skipped, are dropped.
        """
        losses = losses.float().cpu()
        kept = losses.isfinite()
        self.loss.view(-1).scatter_reduce_(0, drawn[kept], losses[kept], "amax", include_self=False)

    def state_dict(self, rows: int) -> dict[str, Tensor]:
        """Of the first ``rows`` rows of the ring, those that hold something."""
        return {"uses": self.uses[:rows].clone(), "loss": self.loss[:rows].clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for mine, saved in ((self.uses, state["uses"]), (self.loss, state["loss"])):
            mine[: len(saved)] = saved


class Demonstrations(Protocol):
    """Recorded play, drawn in windows as the replay buffer is; ``demonstrations.DemonstrationBuffer`` is one."""

    files: list[Path]
    steps: int

    def sample(self, batch_size: int, length: int) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Windows:
    """How many windows are drawn at once.

    count: from the replay buffer.  demonstrated: from demonstrations, besides.  length: steps of each.
    """

    count: int
    demonstrated: int
    length: int

    @property
    def total(self) -> int:
        return self.count + self.demonstrated


@dataclass(slots=True)
class Experience:
    """Draws from the replay buffer and, where there are any, from demonstrations.

    device: where the modules learn.  batch: for an update of the world model.  contexts: for an imagination.
    """

    replay: ReplayBuffer
    demonstrations: Demonstrations | None
    device: torch.device
    batch: Windows
    contexts: Windows

    @property
    def holds_a_window(self) -> bool:
        """Whether the replay buffer has the steps of the longest window that is drawn."""
        return self.replay.rows >= max(self.batch.length, self.contexts.length)

    def sample_batch(self) -> tuple[Batch, Tensor | None]:
        """Windows for one update of the world model, on the device, and which they are, see ``ReplayBuffer.draw``."""
        batch, drawn = self.replay.draw(self.batch.count, self.batch.length)
        return self._with_demonstrations(batch, self.batch), drawn

    def sample_contexts(self) -> Batch:
        """Windows to imagine from, on the device."""
        batch = self.replay.sample(self.contexts.count, self.contexts.length)
        return self._with_demonstrations(batch, self.contexts)

    def _with_demonstrations(self, batch: Batch, windows: Windows) -> Batch:
        """The replay buffer's windows on the device, and behind them those of demonstrations."""
        batch = batch.to(self.device)
        if self.demonstrations is None:
            return batch
        demonstrated = self.demonstrations.sample(windows.demonstrated, batch.action.shape[1])
        return Batch.cat(batch, demonstrated.to(self.device))

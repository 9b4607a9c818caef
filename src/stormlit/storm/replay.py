"""The replay buffer: a ring of environment steps, sampled in windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from stormlit.data import Batch, PartNode, TensorRecord, to_device
from stormlit.nn.building import build_part
from stormlit.nn.samplers import UniformSampler
from stormlit.ops.observations import channels_first
from stormlit.registry import Option
from stormlit.spaces import ActionSpace, ObservationSpace
from stormlit.storm.priorities import Priorities


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
        starts = self._count_starts(length) * self.num_envs
        choice = torch.randint(starts, (batch_size,), generator=generator or self.generator)
        return self._windows(self._row(choice // self.num_envs) * self.num_envs + choice % self.num_envs, length)

    def draw(self, batch_size: int, length: int) -> tuple[Batch, Tensor | None]:
        """``sample`` by the sampler's weights, and what ``learned`` has to be told; None if they are all the same."""
        if self.priorities is None:
            return self.sample(batch_size, length), None
        rows = self._row(torch.arange(self._count_starts(length)))
        drawn = self.priorities.draw(rows, batch_size, self.generator)
        return self._windows(drawn, length), drawn

    def learned(self, drawn: Tensor, losses: Tensor) -> None:
        """Note the losses (B,) of windows that ``draw`` has given."""
        if self.priorities is not None:
            self.priorities.learned(drawn, losses)

    def _count_starts(self, length: int) -> int:
        """How many rows a window of that length can begin with; raises ``ValueError`` if there are none."""
        if length > self.rows:
            raise ValueError(f"a window of {length} steps is longer than the {self.rows} rows in the replay buffer")
        return self.rows - length + 1

    def _row(self, place: Tensor) -> Tensor:
        """The rows at these places of the ring's order, its first row being 0."""
        first = self.total_rows - self.rows if self.order == "age" else 0
        return (first + place) % self.row_capacity

    def _windows(self, drawn: Tensor, length: int) -> Batch:
        """The windows whose first steps are number ``drawn`` (B,) of the storage, row * num_envs + environment."""
        batch_size = len(drawn)
        row = ((drawn // self.num_envs).unsqueeze(1) + torch.arange(length)) % self.row_capacity
        index = to_device((row * self.num_envs + (drawn % self.num_envs).unsqueeze(1)).flatten(), self.device)
        obs, action, reward, terminated, is_first = (
            stored.flatten(0, 1).index_select(0, index).unflatten(0, (batch_size, length))
            for stored in self.storage.tensors()
        )
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

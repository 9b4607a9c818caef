"""What both modules learn from: windows of real experience, some of them from demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stormlit.data import Batch
from stormlit.storm.replay import ReplayBuffer


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

    def sample_batch(self) -> tuple[Batch, Tensor | None]:
        """Windows for one update of the world model, on the device, and which they are, see ``ReplayBuffer.draw``."""
        batch, drawn = self.replay.draw(self.batch.count, self._length(self.batch))
        return self._with_demonstrations(batch, self.batch), drawn

    def sample_contexts(self) -> Batch:
        """Windows to imagine from, on the device."""
        batch = self.replay.sample(self.contexts.count, self._length(self.contexts))
        return self._with_demonstrations(batch, self.contexts)

    def learned(self, drawn: Tensor, losses: Tensor) -> None:
        """Tell the replay buffer the losses of a batch, whose first windows are its own."""
        self.replay.learned(drawn, losses[: len(drawn)])

    def _length(self, windows: Windows) -> int:
        return min(windows.length, self.replay.rows)  # shorter only while the buffer itself is

    def _with_demonstrations(self, batch: Batch, windows: Windows) -> Batch:
        """The replay buffer's windows on the device, and behind them those of demonstrations."""
        batch = batch.to(self.device)
        if self.demonstrations is None:
            return batch
        demonstrated = self.demonstrations.sample(windows.demonstrated, batch.action.shape[1])
        return Batch.cat(batch, demonstrated.to(self.device))

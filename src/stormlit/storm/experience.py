"""What both modules learn from: windows of real experience, some of them from demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stormlit.storm.demonstrations import DemonstrationBuffer
from stormlit.storm.replay import ReplayBuffer
from stormlit.types import Batch


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
    demonstrations: DemonstrationBuffer | None
    device: torch.device
    batch: Windows
    contexts: Windows

    def sample_batch(self) -> Batch:
        """Windows for one update of the world model, on the device."""
        return self._sample(self.batch)

    def sample_contexts(self) -> Batch:
        """Windows to imagine from, on the device."""
        return self._sample(self.contexts)

    def _sample(self, windows: Windows) -> Batch:
        """Windows of the replay buffer, then those of demonstrations."""
        length = min(windows.length, self.replay.rows)  # shorter only while the buffer itself is
        batch = self.replay.sample(windows.count, length).to(self.device)
        if self.demonstrations is None:
            return batch
        return Batch.cat(batch, self.demonstrations.sample(windows.demonstrated, length).to(self.device))

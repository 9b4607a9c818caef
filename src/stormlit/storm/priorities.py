"""What is known of each window of a ring of steps, and drawing windows by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEVER = float("inf")  # the loss of a window that was never drawn


class Priorities:
    """How often each window was drawn and what its loss was then; a window is known by the step it begins with.

    All of it is on the CPU, like the generator that draws: losses that come from a GPU are waited for.

    sampler: gives windows their weights, see ``nn.interfaces.Sampler``.  rows, num_envs: of the ring.
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

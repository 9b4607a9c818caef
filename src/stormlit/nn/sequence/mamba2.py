"""Mamba-2 (Dao and Gu 2024): a recurrent sequence model that trains on all steps at once, in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.data import TensorRecord
from stormlit.errors import ConfigError
from stormlit.nn.autocast import full_precision
from stormlit.nn.sequence.transformer import ActionMixer
from stormlit.ops import state_space
from stormlit.registry import Option, register

NORM_EPS = 1e-5
# What a block's step sizes and decays begin with, drawn between these, as the authors' code has it.
STEP_SIZES, DECAYS = (1e-3, 0.1), (1.0, 16.0)


@dataclass(slots=True)
class Mamba2Memory(TensorRecord):
    """What the convolutions and the recurrences keep of the steps before.

    tails: (layers, N, taps - 1, channels), a convolution's last inputs.  states: (layers, N, heads, P, S).
    """

    tails: Tensor
    states: Tensor

    def cut(self, where: Tensor) -> None:
        """Forget everything seen so far in the rows where ``where`` (N,) bool is True."""
        self.tails.masked_fill_(where.view(1, -1, 1, 1), 0.0)
        self.states.masked_fill_(where.view(1, -1, 1, 1, 1), 0.0)


class Mamba2Block(nn.Module):
    """Norm, projection, short convolution, state-space recurrence, gate, norm, projection; added to what goes in.

    hidden_dim: D.  inner_dim: num_heads * P.  state_dim: S.  taps: steps that the convolution sees.
    """

    def __init__(self, hidden_dim: int, inner_dim: int, num_heads: int, state_dim: int, taps: int) -> None:
        super().__init__()
        self.inner_dim, self.num_heads, self.state_dim, self.taps = inner_dim, num_heads, state_dim, taps
        channels = inner_dim + 2 * state_dim
        self.norm = nn.RMSNorm(hidden_dim, eps=NORM_EPS)
        self.input = nn.Linear(hidden_dim, inner_dim + channels + num_heads, bias=False)
        bound = taps**-0.5
        self.taps_weight = nn.Parameter(torch.empty(taps, channels).uniform_(-bound, bound))
        self.taps_bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        size = torch.empty(num_heads).uniform_(*map(math.log, STEP_SIZES)).exp()
        self.step_bias = nn.Parameter(size + (-(-size).expm1()).log())  # softplus of it is the size
        self.log_rate = nn.Parameter(torch.empty(num_heads).uniform_(*DECAYS).log())
        self.skip = nn.Parameter(torch.ones(num_heads))
        self.gated_norm = nn.RMSNorm(inner_dim, eps=NORM_EPS)
        self.output = nn.Linear(inner_dim, hidden_dim, bias=False)

    def forward(self, x: Tensor, is_first: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T, D).  is_first: (B, T) bool.  Returns (B, T, D), and this layer's tail and state after the end."""
        gate, mixed, size = self._project(x)
        padded = F.pad(mixed, (0, 0, self.taps - 1, 0))
        begun = F.pad(is_first.cumsum(dim=1), (self.taps - 1, 0), value=-1)
        now = begun[:, self.taps - 1 :]
        length, convolved = x.shape[1], self.taps_bias
        for tap, weight in enumerate(self.taps_weight):
            same = (begun[:, tap : tap + length] == now).unsqueeze(-1)
            convolved = convolved + weight * padded[:, tap : tap + length] * same
        with full_precision(x):
            values, write, read = self._split(convolved)
            state = values.new_zeros(len(x), self.num_heads, values.shape[-1], self.state_dim)
            taken, log_decay = values * size.unsqueeze(-1), -size * self.log_rate.exp()
            y, state = state_space.scan(taken, log_decay, write, read, is_first, state, chunk)
            y = y + self.skip.unsqueeze(-1) * values
        tail_begun = begun[:, length:]
        tail = padded[:, length:] * (tail_begun == now[:, -1:]).unsqueeze(-1)
        return x + self._finish(y, gate), tail, state

    def step(self, x: Tensor, tail: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (N, D).  tail: (N, taps - 1, channels).  Returns (N, D), and tail and state as they are after it."""
        gate, mixed, size = self._project(x)
        window = torch.cat([tail, mixed.unsqueeze(1)], dim=1)
        with full_precision(x):
            values, write, read = self._split((window * self.taps_weight).sum(dim=1) + self.taps_bias)
            taken, log_decay = values * size.unsqueeze(-1), -size * self.log_rate.exp()
            y, state = state_space.step(taken, log_decay, write, read, state)
            y = y + self.skip.unsqueeze(-1) * values
        return x + self._finish(y, gate), window[:, 1:], state

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate (..., inner), the convolution's input (..., channels), and step sizes (..., heads); all float32."""
        projected = self.input(self.norm(x)).float()
        gate, mixed, size = projected.split(
            [self.inner_dim, self.inner_dim + 2 * self.state_dim, self.num_heads], dim=-1
        )
        return gate, mixed, F.softplus(size + self.step_bias)

    def _split(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (..., heads, P), and what is written and read (..., S)."""
        values, write, read = F.silu(convolved).split([self.inner_dim, self.state_dim, self.state_dim], dim=-1)
        return values.unflatten(-1, (self.num_heads, -1)), write, read

    def _finish(self, y: Tensor, gate: Tensor) -> Tensor:
        """y: (..., heads, P).  Returns (..., D)."""
        return self.output(self.gated_norm(y.flatten(-2) * F.silu(gate)))


@register("sequence_model", "mamba2")
class Mamba2Sequence(nn.Module):
    """Token mixer, then Mamba-2 blocks (Dao and Gu 2024) and a last norm; windows of any length.

    Full passes work on ``chunk`` steps at once and are the same numbers whatever it is. Drama (Wang et al. 2025) has
    these sizes.

    latent_dim: Z.  num_actions: A.  hidden_dim: D.

    When to use: for long windows: its cost grows with their length, attention's with its square.
    """

    carries = True

    def __init__(
        self,
        latent_dim: int,
        num_actions: int,
        hidden_dim: int,
        *,
        num_layers: Annotated[int, Option("Mamba-2 blocks", low=1)] = 2,
        num_heads: Annotated[int, Option("heads of the recurrence, each with a decay of its own", low=1)] = 16,
        inner_multiple: Annotated[int, Option("width of all heads, in units of hidden_dim", low=1)] = 2,
        state_dim: Annotated[int, Option("numbers remembered for each of these", low=1)] = 16,
        taps: Annotated[int, Option("steps that the convolution before the recurrence sees", low=1)] = 4,
        chunk: Annotated[int, Option("steps read at once in a full pass", low=1)] = 64,
    ) -> None:
        super().__init__()
        inner_dim = inner_multiple * hidden_dim
        if inner_dim % num_heads:
            raise ConfigError(
                f"world_model.hidden_dim={hidden_dim} times world_model.sequence_model.inner_multiple="
                f"{inner_multiple} is not a multiple of world_model.sequence_model.num_heads={num_heads}"
            )
        self.hidden_dim, self.chunk = hidden_dim, chunk
        self.max_length: int | None = None
        self.mixer = ActionMixer(latent_dim, num_actions, hidden_dim)
        self.blocks: Any = nn.ModuleList(
            Mamba2Block(hidden_dim, inner_dim, num_heads, state_dim, taps) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(hidden_dim, eps=NORM_EPS)

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) int64, or (B, T, A) float32.  is_first: (B, T) bool.

        Returns hidden (B, T, D).
        """
        return self.prefill(latent, action, is_first, capacity=action.shape[1])[0]

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Mamba2Memory]:
        """As ``forward``, returning the memory after the last token too; ``capacity`` is not needed here."""
        x, tails, states = self.mixer(latent, action).float(), [], []
        for block in self.blocks:
            x, tail, state = block(x, is_first, self.chunk)
            tails.append(tail)
            states.append(state)
        return self.norm(x), Mamba2Memory(torch.stack(tails), torch.stack(states))

    def empty(self, rows: int, capacity: int) -> Mamba2Memory:
        """A memory of ``rows`` trajectories that have not begun."""
        layers, block = len(self.blocks), self.blocks[0]
        taps, channels = block.taps_weight.shape
        heads, width = block.num_heads, block.inner_dim // block.num_heads
        return Mamba2Memory(
            block.taps_weight.new_zeros(layers, rows, taps - 1, channels),
            block.taps_weight.new_zeros(layers, rows, heads, width, block.state_dim),
        )

    def step(self, latent: Tensor, action: Tensor, memory: Mamba2Memory) -> Tensor:
        """latent: (N, Z).  action: (N,) int64, or (N, A) float32.  Returns (N, D); the memory moves on."""
        x, tails, states = self.mixer(latent, action).float(), [], []
        for block, tail, state in zip(self.blocks, memory.tails, memory.states, strict=True):
            x, tail, state = block.step(x, tail, state)
            tails.append(tail)
            states.append(state)
        memory.tails, memory.states = torch.stack(tails), torch.stack(states)
        return self.norm(x)

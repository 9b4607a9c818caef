"""What a part of each kind has to offer; the tests check every registered part against these."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Encoder(Protocol):
    """Built as ``Encoder(obs_shape, **options)`` with obs_shape (C, Y, X)."""

    embed_dim: int

    def __call__(self, obs: Tensor) -> Tensor:
        """obs: (M, C, Y, X) float in [0, 1].  Returns (M, E)."""
        ...


class Decoder(Protocol):
    """Built as ``Decoder(latent_dim, obs_shape, **options)``."""

    def __call__(self, latent: Tensor) -> Tensor:
        """latent: (M, Z).  Returns (M, C, Y, X), on the scale of the observations in [0, 1], not clipped."""
        ...


class Latent(Protocol):
    """Built as ``Latent(embed_dim, hidden_dim, **options)``; logits are whatever describes the distribution."""

    latent_dim: int

    def posterior(self, embed: Tensor) -> Tensor:
        """embed: (..., E).  Returns the distribution of z given the frame, (..., G, K) float32."""
        ...

    def prior(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D).  Returns the distribution of the next z given the past, (..., G, K) float32."""
        ...

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., G, K).  Returns a sample (..., Z) float32 through which gradients flow."""
        ...

    def draw_posterior(self, embed: Tensor, *, sparse: bool) -> Tensor:
        """``sample(posterior(embed))`` without gradients; in sparse form (see ``types``) if asked for and possible."""
        ...

    def draw_prior(self, hidden: Tensor, *, sparse: bool) -> Tensor:
        """``sample(prior(hidden))`` without gradients; in sparse form (see ``types``) if asked for and possible."""
        ...


class Memory(Protocol):
    """What a sequence model remembers of N trajectories while stepping."""

    def cut(self, where: Tensor) -> None:
        """Forget everything seen so far in the rows where ``where`` (N,) bool is True."""
        ...


class SequenceModel(Protocol):
    """Built as ``SequenceModel(latent_dim, num_actions, hidden_dim, **options)``.

    ``hidden[:, t]`` depends on tokens 0..t alone, and on none before the last episode start at or before t.
    """

    hidden_dim: int
    max_length: int | None

    def __call__(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) int64.  is_first: (B, T) bool.  Returns hidden (B, T, D)."""
        ...

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Memory]:
        """The same pass, keeping a memory with room for ``capacity`` tokens in all.  Returns hidden and the memory."""
        ...

    def empty(self, rows: int, capacity: int) -> Memory:
        """A memory of ``rows`` trajectories that have not begun, with room for ``capacity`` tokens."""
        ...

    def step(self, latent: Tensor, action: Tensor, memory: Memory) -> Tensor:
        """One more token, in place of a full pass.  latent: (N, Z).  action: (N,).  Returns hidden (N, D)."""
        ...

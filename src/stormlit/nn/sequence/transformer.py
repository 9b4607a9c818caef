"""The paper's sequence model: a causal Transformer over one token a step (STORM section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from stormlit.data import OneHots
from stormlit.errors import ConfigError
from stormlit.nn.autocast import compute_dtype
from stormlit.nn.sequence.attention import LAYER_NORM_EPS, Cache, KeyValueCache, LayerInputCache, TransformerBlock
from stormlit.nn.sequence.mixer import ActionMixer
from stormlit.ops.masks import episode_causal_mask, last_start
from stormlit.registry import Option, register


@dataclass(slots=True)
class TransformerMemory:
    """Key-value caches of every layer, how many tokens they hold, and which of them each row may still see.

    mask: (N, 1, 1, capacity), 0 where visible and -inf where the row has forgotten.
    """

    layers: list[Cache]
    length: int
    mask: Tensor

    def cut(self, where: Tensor) -> None:
        """Forget everything seen so far in the rows where ``where`` (N,) bool is True."""
        self.mask[:, :, :, : self.length].masked_fill_(where.view(-1, 1, 1, 1), float("-inf"))


@register("sequence_model", "transformer")
class TransformerSequence(nn.Module):
    """Token mixer, learned positions, LayerNorm, then post-norm causal blocks.

    latent_dim: Z.  num_actions: A.  hidden_dim: D.

    When to use: the default.
    """

    accepts_sparse = True

    def __init__(
        self,
        latent_dim: int,
        num_actions: int,
        hidden_dim: int,
        *,
        num_layers: Annotated[int, Option("Transformer blocks", low=1)] = 2,
        num_heads: Annotated[int, Option("attention heads", low=1)] = 8,
        feedforward_multiple: Annotated[
            int, Option("hidden width of the blocks' network, in units of hidden_dim", low=1)
        ] = 2,
        dropout: Annotated[float, Option("on attention and residual paths", 0, 1)] = 0.1,
        max_length: Annotated[int, Option("longest window in steps; positions are learned", low=1)] = 64,
        cache: Annotated[
            Literal["keys_values", "layer_inputs"],
            Option("what is kept of past steps when stepping: keys and values, or the inputs they are made from"),
        ] = "keys_values",
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ConfigError(
                f"world_model.hidden_dim={hidden_dim} is not a multiple of "
                f"world_model.sequence_model.num_heads={num_heads}"
            )
        self.hidden_dim, self.num_heads = hidden_dim, num_heads
        self.max_length: int | None = max_length
        self.cache = cache
        self.mixer = ActionMixer(latent_dim, num_actions, hidden_dim)
        self.positions = nn.Embedding(max_length, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_dim, num_heads, hidden_dim * feedforward_multiple, dropout)
            for _ in range(num_layers)
        )

    def forward(self, latent: Tensor | OneHots, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z), or one-hots.  action: (B, T) int64, or (B, T, A) float32.  is_first: (B, T) bool.

        Returns hidden (B, T, D).
        """
        mask = self._mask(is_first)
        x = self._tokens(latent, action, start=0)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def prefill(
        self, latent: Tensor | OneHots, action: Tensor, is_first: Tensor, capacity: int
    ) -> tuple[Tensor, TransformerMemory]:
        """As ``forward``, keeping keys and values with room for ``capacity`` tokens in all."""
        rows, length = action.shape[:2]
        memory = self.empty(rows, capacity)
        mask = self._mask(is_first)
        x = self._tokens(latent, action, start=0)
        for block, cache in zip(self.blocks, memory.layers, strict=True):
            x = block(x, mask, cache)
        forgotten = torch.arange(capacity, device=x.device) < last_start(is_first).unsqueeze(1)
        memory.mask.masked_fill_(forgotten.view(rows, 1, 1, capacity), float("-inf"))
        memory.length = length
        return x, memory

    def empty(self, rows: int, capacity: int) -> TransformerMemory:
        """A memory with room for ``capacity`` tokens of ``rows`` trajectories that have not begun."""
        weight = self.positions.weight
        dtype = compute_dtype(weight)  # of keys and values, and thus of what holds them
        shape = (rows, self.num_heads, capacity, self.hidden_dim // self.num_heads)
        caches: list[Cache]
        if self.cache == "layer_inputs":
            caches = [LayerInputCache(weight.new_zeros(rows, capacity, self.hidden_dim)) for _ in self.blocks]
        else:
            caches = [
                KeyValueCache(weight.new_zeros(shape, dtype=dtype), weight.new_zeros(shape, dtype=dtype))
                for _ in self.blocks
            ]
        return TransformerMemory(caches, 0, weight.new_zeros(rows, 1, 1, capacity, dtype=dtype))

    def step(self, latent: Tensor | OneHots, action: Tensor, memory: TransformerMemory) -> Tensor:
        """latent: (N, Z), or one-hots.  action: (N,) int64, or (N, A) float32.  Returns hidden (N, D).

        The memory grows by one token.
        """
        position = memory.length
        x = self._tokens(latent[:, None], action[:, None], start=position)
        mask = memory.mask[:, :, :, : position + 1]
        for block, cache in zip(self.blocks, memory.layers, strict=True):
            x = block(x, mask, cache, position)
        memory.length += 1
        return x.squeeze(1)

    def _mask(self, is_first: Tensor) -> Tensor:
        """is_first: (B, T) bool.  Returns (B, 1, T, T), 0 where a step may see another and -inf elsewhere."""
        hidden = ~episode_causal_mask(is_first).unsqueeze(1)
        dtype = compute_dtype(self.positions.weight)
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))

    def _tokens(self, latent: Tensor | OneHots, action: Tensor, start: int) -> Tensor:
        length = action.shape[1]
        positions = self.positions.weight[start : start + length]
        return self.norm(self.mixer(latent, action) + positions)

"""The paper's sequence model: a causal Transformer over one token a step (STORM section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stormlit.errors import ConfigError
from stormlit.nn.attention import LAYER_NORM_EPS, KeyValueCache, TransformerBlock
from stormlit.nn.mixer import ActionMixer
from stormlit.ops.masks import episode_causal_mask, last_start
from stormlit.registry import register


@dataclass(slots=True)
class TransformerMemory:
    """Key-value caches of every layer, how many tokens they hold, and which of them each row may still see.

    mask: (N, 1, 1, capacity) float32, 0 where visible and -inf where the row has forgotten.
    """

    layers: list[KeyValueCache]
    length: int
    mask: Tensor

    def cut(self, where: Tensor) -> None:
        """Forget everything seen so far in the rows where ``where`` (N,) bool is True."""
        self.mask[:, :, :, : self.length].masked_fill_(where.view(-1, 1, 1, 1), float("-inf"))


@register("sequence_model", "transformer")
class TransformerSequence(nn.Module):
    """Token mixer, learned positions, LayerNorm, then post-norm causal blocks.

    latent_dim: Z.  num_actions: A.  hidden_dim: D.  num_layers, num_heads: of the Transformer.
    feedforward_multiple: hidden width of the blocks' network, in units of D.  dropout: on attention and residual paths.
    max_length: longest window in steps; positions are learned.
    """

    def __init__(
        self,
        latent_dim: int,
        num_actions: int,
        hidden_dim: int,
        *,
        num_layers: int = 2,
        num_heads: int = 8,
        feedforward_multiple: int = 2,
        dropout: float = 0.1,
        max_length: int = 64,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ConfigError(
                f"world_model.hidden_dim={hidden_dim} is not a multiple of "
                f"world_model.sequence_model.num_heads={num_heads}"
            )
        self.hidden_dim, self.num_heads = hidden_dim, num_heads
        self.max_length: int | None = max_length
        self.mixer = ActionMixer(latent_dim, num_actions, hidden_dim)
        self.positions = nn.Embedding(max_length, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_dim, num_heads, hidden_dim * feedforward_multiple, dropout)
            for _ in range(num_layers)
        )

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) int64.  is_first: (B, T) bool.  Returns hidden (B, T, D)."""
        mask = episode_causal_mask(is_first).unsqueeze(1)
        x = self._tokens(latent, action, start=0)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def prefill(
        self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int
    ) -> tuple[Tensor, TransformerMemory]:
        """As ``forward``, keeping keys and values with room for ``capacity`` tokens in all."""
        rows, length = action.shape
        mask = episode_causal_mask(is_first).unsqueeze(1)
        x = self._tokens(latent, action, start=0)
        # What autocast computes keys and values in is what the cache has to hold.
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        shape = (rows, self.num_heads, capacity, self.hidden_dim // self.num_heads)
        caches = [KeyValueCache(x.new_zeros(shape, dtype=dtype), x.new_zeros(shape, dtype=dtype)) for _ in self.blocks]
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, mask, cache)
        forgotten = torch.arange(capacity, device=x.device) < last_start(is_first).unsqueeze(1)
        visible = torch.zeros(rows, capacity, device=x.device).masked_fill_(forgotten, float("-inf"))
        return x, TransformerMemory(caches, length, visible.view(rows, 1, 1, capacity))

    def step(self, latent: Tensor, action: Tensor, memory: TransformerMemory) -> Tensor:
        """latent: (N, Z).  action: (N,) int64.  Returns hidden (N, D); the memory grows by one token."""
        position = memory.length
        x = self._tokens(latent.unsqueeze(1), action.unsqueeze(1), start=position)
        mask = memory.mask[:, :, :, : position + 1]
        for block, cache in zip(self.blocks, memory.layers, strict=True):
            x = block(x, mask, cache, position)
        memory.length += 1
        return x.squeeze(1)

    def _tokens(self, latent: Tensor, action: Tensor, start: int) -> Tensor:
        length = action.shape[1]
        positions = self.positions.weight[start : start + length]
        return self.norm(self.mixer(latent, action) + positions)

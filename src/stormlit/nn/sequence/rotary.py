"""A causal Transformer with norms in front (pre-norm) and rotary positions, which has no longest window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.data import TensorRecord
from stormlit.errors import ConfigError
from stormlit.nn.autocast import compute_dtype
from stormlit.nn.sequence.transformer import LAYER_NORM_EPS, ActionMixer, Dropout
from stormlit.ops.masks import episode_causal_mask, last_start
from stormlit.registry import Option, register

LONGEST_WAVE = 10_000.0  # steps, over 2 pi: the slowest of the rotations, as Su et al. (2021) have it


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Turn pairs of numbers by angles that grow with the position (RoFormer, Su et al. 2021, equation 34).

    The dot product of two turned vectors depends on how far apart their positions are, not on where they are.
    Numbers d and d + W / 2 are a pair, which turns by ``position * LONGEST_WAVE ** (-2 d / W)``.

    x: (..., W), W even.  position: (...) broadcastable to the leading axes of x.  Returns (..., W) in x's dtype.
    """
    half = x.shape[-1] // 2
    speed = LONGEST_WAVE ** -(torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position.unsqueeze(-1) * speed
    cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.split(half, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


@dataclass(slots=True)
class RotaryMemory(TensorRecord):
    """Keys and values of the last ``capacity`` tokens of each row's episode, in rings.

    keys, values: (layers, N, heads, capacity, head width).  seen: (N,) int64, tokens of the running episode.
    """

    keys: Tensor
    values: Tensor
    seen: Tensor

    def cut(self, where: Tensor) -> None:
        """Forget everything seen so far in the rows where ``where`` (N,) bool is True."""
        self.seen.masked_fill_(where, 0)


class RotaryBlock(nn.Module):
    """Attention and a two-layer network, each behind a LayerNorm and added to what goes in.

    hidden_dim: D, num_heads times an even number.  feedforward_dim: width of the network's hidden layer.
    """

    def __init__(self, hidden_dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, dropout
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.query_key_value = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.dropout = Dropout(dropout)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS),
            nn.Linear(hidden_dim, feedforward_dim),
            nn.ReLU(inplace=True),
            nn.Linear(feedforward_dim, hidden_dim),
            Dropout(dropout),
        )

    def project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (N, S, D).  position: (N, S).  Returns turned queries and keys, and values, (N, heads, S, width) each."""
        projected = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        return rotate(query, position.unsqueeze(1)), rotate(key, position.unsqueeze(1)), value

    def attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """The block's output (N, S, D).  x: its input.  mask: True where a query may see a key."""
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        x = x + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        return x + self.feedforward(x)


@register("sequence_model", "rotary_transformer")
class RotaryTransformerSequence(nn.Module):
    """Token mixer, then pre-norm causal blocks with rotary positions and a last LayerNorm; windows of any length.

    Carried along, it remembers as many tokens as its memory has room for, and each layer what it saw of those before.

    latent_dim: Z.  num_actions: A.  hidden_dim: D.

    When to use: for more layers, which pre-norm keeps trainable (Xiong et al. 2020), and for windows or memories longer
    than those it was trained on.
    """

    carries = True

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
    ) -> None:
        super().__init__()
        if hidden_dim % (2 * num_heads):
            raise ConfigError(
                f"world_model.hidden_dim={hidden_dim} is not a multiple of twice "
                f"world_model.sequence_model.num_heads={num_heads}, as rotary positions need"
            )
        self.hidden_dim, self.num_heads = hidden_dim, num_heads
        self.max_length: int | None = None
        self.mixer = ActionMixer(latent_dim, num_actions, hidden_dim)
        self.blocks: Any = nn.ModuleList(
            RotaryBlock(hidden_dim, num_heads, hidden_dim * feedforward_multiple, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)

    def forward(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) int64, or (B, T, A) float32.  is_first: (B, T) bool.

        Returns hidden (B, T, D).
        """
        position = torch.arange(action.shape[1], device=action.device).unsqueeze(0)
        return self._read(latent, action, is_first, position)[0]

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, RotaryMemory]:
        """As ``forward``, keeping the keys and values of each row's last episode, ``capacity`` tokens at the most."""
        rows, length = action.shape[:2]
        start = last_start(is_first).unsqueeze(1)
        position = torch.arange(length, device=action.device) - start  # as steps count them, from the episode's start
        hidden, keys, values = self._read(latent, action, is_first, position)
        memory = self.empty(rows, capacity)
        memory.seen = length - start.squeeze(1)
        # Slot s of a ring holds the last token whose position is s modulo the capacity.
        slot = torch.arange(capacity, device=action.device)
        newest = memory.seen.unsqueeze(1) - 1
        token = start + newest - (newest - slot) % capacity
        index = token.clamp(min=0).view(1, rows, 1, capacity, 1)  # slots that hold nothing yet are never read
        for ring, made in ((memory.keys, keys), (memory.values, values)):
            ring.copy_(torch.stack(made).gather(3, index.expand(ring.shape)))
        return hidden, memory

    def empty(self, rows: int, capacity: int) -> RotaryMemory:
        """A memory with room for ``capacity`` tokens of ``rows`` trajectories that have not begun."""
        weight = self.norm.weight
        shape = (len(self.blocks), rows, self.num_heads, capacity, self.hidden_dim // self.num_heads)
        keys, values = (weight.new_zeros(shape, dtype=compute_dtype(weight)) for _ in range(2))
        return RotaryMemory(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))

    def step(self, latent: Tensor, action: Tensor, memory: RotaryMemory) -> Tensor:
        """latent: (N, Z).  action: (N,) int64, or (N, A) float32.  Returns hidden (N, D).

        The memory grows by one token; a full one forgets the oldest.
        """
        rows, capacity = len(memory.seen), memory.keys.shape[3]
        x = self.mixer(latent[:, None], action[:, None]).float()
        position = memory.seen.unsqueeze(1)
        row, slot = torch.arange(rows, device=x.device), memory.seen % capacity
        mask = (torch.arange(capacity, device=x.device) <= position).view(rows, 1, 1, capacity)
        for layer, block in enumerate(self.blocks):
            query, key, value = block.project(x, position)
            for ring, newest in ((memory.keys[layer], key), (memory.values[layer], value)):
                ring[row, :, slot] = newest.squeeze(2).to(ring.dtype)
            # A memory that was made outside mixed precision may be used inside it.
            keys, values = memory.keys[layer].to(query.dtype), memory.values[layer].to(query.dtype)
            x = block.attend(x, query, keys, values, mask)
        memory.seen = memory.seen + 1
        return self.norm(x).squeeze(1)

    def _read(
        self, latent: Tensor, action: Tensor, is_first: Tensor, position: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Hidden states of windows whose steps have these positions, and every layer's keys and values."""
        mask = episode_causal_mask(is_first).unsqueeze(1)
        x = self.mixer(latent, action).float()
        keys, values = [], []
        for block in self.blocks:
            query, key, value = block.project(x, position)
            x = block.attend(x, query, key, value, mask)
            keys.append(key)
            values.append(value)
        return self.norm(x), keys, values

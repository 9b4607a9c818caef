"""The paper's sequence model: latent and action in one token a step, read by a causal post-norm Transformer with a
key-value cache (STORM section 3.1, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.errors import ConfigError
from stormlit.nn.autocast import compute_dtype
from stormlit.ops.masks import episode_causal_mask, last_start
from stormlit.registry import Option, register


class ActionMixer(nn.Module):
    """``e_t = m(z_t, a_t)``, STORM's equation 2: Linear - LayerNorm - ReLU - Linear - LayerNorm of z_t and one-hot a_t.

    An action that is not one of a few comes as a vector in place of the one-hot.

    latent_dim: Z.  num_actions: A.  hidden_dim: D.
    """

    def __init__(self, latent_dim: int, num_actions: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent = nn.Linear(latent_dim, hidden_dim, bias=False)
        # A row of the first layer's weight per action: the same sum as concatenating a one-hot action.
        self.action = nn.Linear(num_actions, hidden_dim, bias=False)
        # One layer with Z + A inputs would start with this bound; two separate ones would not.
        bound = (latent_dim + num_actions) ** -0.5
        for part in (self.latent, self.action):
            nn.init.uniform_(part.weight, -bound, bound)
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            nn.LayerNorm(hidden_dim),
        )

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """latent: (..., Z).  action: (...,) int64, or (..., A) float32.  Returns (..., D)."""
        if action.is_floating_point():
            return self.layers(self.latent(latent) + self.action(action))
        return self.layers(self.latent(latent) + F.embedding(action, self.action.weight.t()))


LAYER_NORM_EPS = 1e-6  # of the blocks and the embedding; the token mixer's norms keep PyTorch's 1e-5


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of one layer for the steps seen so far, with room for all that will come.

    keys, values: (N, heads, capacity, head width).
    """

    keys: Tensor
    values: Tensor

    def write(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (N, heads, S, width) from position ``start`` on; return everything stored up to there."""
        end = start + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class Dropout(nn.Module):
    """``nn.Dropout`` in one operation on every device, where PyTorch's own takes four on the CPU."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape.  Returns the same shape."""
        if not self.training or self.probability == 0.0:
            return x
        return torch.native_dropout(x, self.probability, train=True)[0]


class SelfAttention(nn.Module):
    """Multi-head attention without biases; dropout on the attention weights and on the output.

    hidden_dim: D, a multiple of num_heads.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, dropout
        # In one matrix, which is one product instead of three.
        self.query_key_value = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, cache: KeyValueCache | None = None, start: int = 0) -> Tensor:
        """x: (N, S, D), the tokens from position ``start`` on.  mask: (N, 1, S, start + S) in the dtype that
        queries have, 0 where visible and -inf elsewhere.

        With a cache, the earlier tokens' keys and values come from it, and this call's are added.  Returns (N, S, D).
        """
        projected = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            key, value = cache.write(start, key, value)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.dropout(self.output(attended.transpose(1, 2).flatten(2)))


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each followed by residual and LayerNorm (post-norm, as in Vaswani et al.).

    hidden_dim: D.  feedforward_dim: width of the network's hidden layer.
    """

    def __init__(self, hidden_dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden_dim, num_heads, dropout)
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.feedforward = nn.Sequential(
            nn.Linear(hidden_dim, feedforward_dim),
            nn.ReLU(inplace=True),
            nn.Linear(feedforward_dim, hidden_dim),
            Dropout(dropout),
        )
        self.feedforward_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, mask: Tensor, cache: KeyValueCache | None = None, start: int = 0) -> Tensor:
        """Shapes as in ``SelfAttention.forward``."""
        x = self.attention_norm(x + self.attention(x, mask, cache, start))
        return self.feedforward_norm(x + self.feedforward(x))


@dataclass(slots=True)
class TransformerMemory:
    """Key-value caches of every layer, how many tokens they hold, and which of them each row may still see.

    mask: (N, 1, 1, capacity), 0 where visible and -inf where the row has forgotten.
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

    latent_dim: Z.  num_actions: A.  hidden_dim: D.

    When to use: the default.
    """

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
        """latent: (B, T, Z).  action: (B, T) int64, or (B, T, A) float32.  is_first: (B, T) bool.

        Returns hidden (B, T, D).
        """
        mask = self._mask(is_first, compute_dtype(self.positions.weight))
        x = self._tokens(latent, action, start=0)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def prefill(
        self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int
    ) -> tuple[Tensor, TransformerMemory]:
        """As ``forward``, keeping keys and values with room for ``capacity`` tokens in all."""
        rows, length = action.shape[:2]
        memory = self.empty(rows, capacity)
        mask = self._mask(is_first, memory.mask.dtype)
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
        caches = [
            KeyValueCache(weight.new_zeros(shape, dtype=dtype), weight.new_zeros(shape, dtype=dtype))
            for _ in self.blocks
        ]
        return TransformerMemory(caches, 0, weight.new_zeros(rows, 1, 1, capacity, dtype=dtype))

    def step(self, latent: Tensor, action: Tensor, memory: TransformerMemory) -> Tensor:
        """latent: (N, Z).  action: (N,) int64, or (N, A) float32.  Returns hidden (N, D).

        The memory grows by one token. Raises ``IndexError`` where it, or ``max_length``, has no room for that.
        """
        position = memory.length
        room = min(memory.mask.shape[-1], len(self.positions.weight))
        if position == room:
            raise IndexError(f"the memory is full: it has room for {room} steps")
        x = self._tokens(latent[:, None], action[:, None], start=position)
        mask = memory.mask[:, :, :, : position + 1]
        for block, cache in zip(self.blocks, memory.layers, strict=True):
            x = block(x, mask, cache, position)
        memory.length += 1
        return x.squeeze(1)

    def _mask(self, is_first: Tensor, dtype: torch.dtype) -> Tensor:
        """is_first: (B, T) bool.  Returns (B, 1, T, T), 0 where a step may see another and -inf elsewhere."""
        hidden = ~episode_causal_mask(is_first).unsqueeze(1)
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))

    def _tokens(self, latent: Tensor, action: Tensor, start: int) -> Tensor:
        length = action.shape[1]
        positions = self.positions.weight[start : start + length]
        return self.norm(self.mixer(latent, action) + positions)

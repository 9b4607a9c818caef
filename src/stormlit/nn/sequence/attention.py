"""Post-norm Transformer blocks with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


@dataclass(slots=True)
class LayerInputCache:
    """Inputs of one layer for the steps seen so far, from which keys and values are made again at every step.

    The released code's way (weipu-zhang/STORM, sub_models/transformer_model.py): the same numbers for more work.
    inputs: (N, capacity, D).
    """

    inputs: Tensor

    def write(self, start: int, x: Tensor) -> Tensor:
        """Store (N, S, D) from position ``start`` on; return everything stored up to there."""
        end = start + x.shape[1]
        self.inputs[:, start:end] = x
        return self.inputs[:, :end]


Cache = KeyValueCache | LayerInputCache


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

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """x: (N, S, D), the tokens from position ``start`` on.  mask: (N, 1, S, start + S) in the dtype that
        queries have, 0 where visible and -inf elsewhere.

        With a cache, the earlier tokens' keys and values come from it, and this call's are added.  Returns (N, S, D).
        """
        if isinstance(cache, LayerInputCache):
            source, width = cache.write(start, x), x.shape[-1]
            (query,) = self._heads(F.linear(x, self.query_key_value.weight[:width]), 1)
            key, value = self._heads(F.linear(source, self.query_key_value.weight[width:]), 2)
        else:
            query, key, value = self._heads(self.query_key_value(x), 3)
        if isinstance(cache, KeyValueCache):
            key, value = cache.write(start, key, value)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.dropout(self.output(attended.transpose(1, 2).flatten(2)))

    def _heads(self, projected: Tensor, count: int) -> tuple[Tensor, ...]:
        """(N, S, count * D) to ``count`` times (N, heads, S, head width)."""
        return projected.unflatten(-1, (count, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


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

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """Shapes as in ``SelfAttention.forward``."""
        x = self.attention_norm(x + self.attention(x, mask, cache, start))
        return self.feedforward_norm(x + self.feedforward(x))

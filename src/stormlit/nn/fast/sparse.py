"""One-hot latents by the positions of their ones, and the layers that read them so.

A matrix product with one-hot groups adds G rows of the weight; written as such it is Z / G times less work, which
is what a CPU notices. (A GPU multiplies faster than it gathers, and gets the dense form.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stormlit.nn.fast.autocast import compute_dtype


@dataclass(slots=True)
class SparseState:
    """What a head reads, [latent, dense], with the latent in sparse form.

    positions: (..., G) int64, where the latent's ones are among its Z numbers.  dense: (..., D), or None.
    """

    positions: Tensor
    dense: Tensor | None

    def __getitem__(self, index: Any) -> SparseState:
        """Index the leading dimensions of both."""
        return SparseState(self.positions[index], None if self.dense is None else self.dense[index])


class InputLinear(nn.Linear):
    """A linear layer whose input may be a latent, or begin with one, in sparse form.

    The weight is an ordinary (out, in) one, but stored input by input, so that the rows to add lie together.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())

    def forward(self, x: Tensor | SparseState) -> Tensor:
        """x: (..., in) floating point, (..., G) int64 positions of ones, or both.  Returns (..., out)."""
        if isinstance(x, SparseState):
            if x.dense is None:
                return self._add_rows(self.weight.t(), x.positions)
            width = x.dense.shape[-1]
            # Not by slices, of which either would have a gradient of the whole weight's size.
            latent, dense = self.weight.t().split([self.in_features - width, width])
            return self._add_rows(latent, x.positions) + F.linear(x.dense, dense.t())
        return F.linear(x, self.weight, self.bias) if x.is_floating_point() else self._add_rows(self.weight.t(), x)

    def _add_rows(self, weight: Tensor, positions: Tensor) -> Tensor:
        dtype = compute_dtype(self.weight)
        rows = _AddRows.apply(weight, positions.flatten(0, -2), dtype)
        if self.bias is not None:
            rows = (rows + self.bias).to(dtype)
        return rows.unflatten(0, positions.shape[:-1])


class _AddRows(torch.autograd.Function):
    """Sums of rows of a weight (in, out): positions (N, G), those of one sum all different, to (N, out) in ``dtype``.

    The gradient is a matrix product in ``dtype``, which in mixed precision is faster than adding rows back, and rounded
    as that of any other layer.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.like_weight = weight.dtype, weight.shape[0]
        return F.embedding_bag(positions, weight, mode="sum").to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (positions,), (gradient,), (dtype, rows) = ctx.saved_tensors, gradients, ctx.like_weight
        ones = gradient.new_zeros(len(positions), rows).scatter_(1, positions, 1.0)
        return (ones.t() @ gradient).to(dtype), None, None

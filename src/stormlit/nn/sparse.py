"""One-hot latents by the positions of their ones, and the layers that read them so.

A matrix product with one-hot groups adds G rows of the weight; written as such it is Z / G times less work, which
is what a CPU notices. (A GPU multiplies faster than it gathers, and gets the dense form.)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stormlit.data import OneHots
from stormlit.nn.autocast import compute_dtype


def accepts_sparse(*parts: Any) -> bool:
    """Whether all of them take latents, and the states made of them, as ``OneHots`` too; parts that do say so."""
    return all(getattr(part, "accepts_sparse", False) for part in parts)


def draw(latent: Any, side: Literal["posterior", "prior"], features: Tensor, *, sparse: bool) -> Tensor | OneHots:
    """Sample from the posterior or the prior of a latent without gradients, in its own faster way if it has one.

    features: embeddings (..., E) or hidden states (..., D).  sparse: for a latent that accepts it.
    Returns (..., Z) float32, or ``OneHots``.
    """
    faster = getattr(latent, f"draw_{side}", None)
    if faster is not None:
        return faster(features, sparse=sparse)
    return latent.sample(getattr(latent, side)(features)).detach()


def stack(latents: list[Tensor | OneHots], dim: int) -> Tensor | OneHots:
    """Latents (..., Z), all in the same form, as one with a new dimension."""
    positions = [latent.positions for latent in latents if isinstance(latent, OneHots)]
    return OneHots(torch.stack(positions, dim)) if positions else torch.stack(latents, dim)  # type: ignore[arg-type]


class InputLinear(nn.Linear):
    """A linear layer whose input may be a latent, or begin with one, as ``OneHots``.

    The weight is an ordinary (out, in) one, but stored input by input, so that the rows to add lie together.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())

    def forward(self, x: Tensor | OneHots) -> Tensor:
        """x: (..., in), or the same as one-hots.  Returns (..., out)."""
        if not isinstance(x, OneHots):
            return F.linear(x, self.weight, self.bias)
        if x.rest is None:
            return self._add_rows(self.weight.t(), x.positions)
        width = x.rest.shape[-1]
        # Not by slices, of which either would have a gradient of the whole weight's size.
        latent, rest = self.weight.t().split([self.in_features - width, width])
        return self._add_rows(latent, x.positions) + F.linear(x.rest, rest.t())

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

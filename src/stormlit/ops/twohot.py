"""Symlog two-hot regression of rewards and values (STORM section 3.2, after DreamerV3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def symlog(x: Tensor) -> Tensor:
    """``sign(x) ln(1 + |x|)``, elementwise."""
    return torch.copysign(torch.log1p(x.abs()), x)


def symexp(x: Tensor) -> Tensor:
    """``sign(x) (exp(|x|) - 1)``, elementwise; the inverse of ``symlog``."""
    return torch.copysign(torch.expm1(x.abs()), x)


def symlog_bins(count: int, low: float, high: float) -> Tensor:
    """Evenly spaced bin centres in symlog space.  Returns (count,) float32."""
    return torch.linspace(low, high, count)


def twohot_position(target: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Where a target falls between its two neighbouring bins.

    target: (...,) in the original space.  bins: (K,) evenly spaced, in symlog space.
    Returns the lower bin's index (...,) int64 in [0, K - 2] and the weight of the upper bin (...,) float32 in [0, 1].
    Targets outside the bins count as the outermost bin.
    """
    width = (bins[-1] - bins[0]) / (bins.shape[0] - 1)
    position = ((symlog(target.float()) - bins[0]) / width).clamp(0, bins.shape[0] - 1)
    # A target that is not a number makes the loss not a number, which can be handled; as an index it could not.
    lower = position.long().clamp_(0, bins.shape[0] - 2)
    return lower, position - lower


def twohot_loss(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy with the two-hot encoding of ``symlog(target)``.

    logits: (..., K) any float dtype.  target: (...,).  bins: (K,).  Returns (...,) float32.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    lower, weight = twohot_position(target, bins)
    pair = log_probs.gather(-1, torch.stack([lower, lower + 1], dim=-1))
    return -torch.lerp(pair[..., 0], pair[..., 1], weight)


def twohot_decode(logits: Tensor, bins: Tensor) -> Tensor:
    """``symexp`` of the expected bin.  logits: (..., K) any float dtype.  bins: (K,).  Returns (...,) float32."""
    # Not a matrix product: autocast would run that in bfloat16, which is off by 1%.
    return symexp((F.softmax(logits.float(), dim=-1) * bins).sum(dim=-1))


def hl_gauss_loss(logits: Tensor, target: Tensor, bins: Tensor, deviation: float = 0.75) -> Tensor:
    """Cross-entropy with a normal around ``symlog(target)``, cut into the bins (HL-Gauss, Farebrother et al. 2024).

    logits: (..., K) any float dtype.  target: (...,).  bins: (K,) evenly spaced, in symlog space.
    deviation: of the normal, in widths of a bin.  Returns (...,) float32.
    Targets outside the bins count as the outermost bin; what a normal has outside is shared out among the bins.
    """
    width = (bins[-1] - bins[0]) / (bins.shape[0] - 1)
    edges = torch.cat([bins - 0.5 * width, (bins[-1:] + 0.5 * width)])
    centre = symlog(target.float()).clamp(bins[0], bins[-1]).unsqueeze(-1)
    below = torch.special.ndtr((edges - centre) / (deviation * width))
    mass = below.diff(dim=-1) / (below[..., -1:] - below[..., :1])
    return -(mass * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def symexp_bins(count: int, low: float, high: float) -> Tensor:
    """Bin centres that are evenly spaced in symlog space, in the original space.  Returns (count,) float32."""
    return symexp(symlog_bins(count, low, high))


def symexp_twohot_loss(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy with the two-hot encoding of the target itself, between bins of ``symexp_bins`` (DreamerV3 as
    published in Nature, Hafner et al. 2025).

    logits: (..., K) any float dtype.  target: (...,).  bins: (K,) rising.  Returns (...,) float32.
    """
    target = target.float().clamp(bins[0], bins[-1]).contiguous()
    # A target that is not a number falls into the last pair, and makes the loss not a number.
    lower = (torch.searchsorted(bins, target, right=True) - 1).clamp_(0, bins.shape[0] - 2)
    below, above = bins[lower], bins[lower + 1]
    pair = F.log_softmax(logits.float(), dim=-1).gather(-1, torch.stack([lower, lower + 1], dim=-1))
    return -torch.lerp(pair[..., 0], pair[..., 1], (target - below) / (above - below))


def symexp_twohot_decode(logits: Tensor, bins: Tensor) -> Tensor:
    """The expected bin, in the original space: the mean of what was seen, where ``twohot_decode`` is below it for
    rare large numbers.  logits: (..., K) any float dtype.  bins: (K,).  Returns (...,) float32.
    """
    product = F.softmax(logits.float(), dim=-1) * bins
    # The outermost bins are huge; added to their opposites first, they cancel while nothing was learned of them.
    return 0.5 * (product + product.flip(-1)).sum(dim=-1)

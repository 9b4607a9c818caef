"""Categorical latents and policies as plain tensors of log-probabilities, always in float32.

Mixed precision stops here: a bfloat16 running sum visibly biases a sampler, so every function upcasts first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def unimix_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Log-probabilities of a categorical mixed with the uniform one: ``(1 - unimix) softmax(logits) + unimix / K``.

    logits: (..., K) any float dtype.  Returns (..., K) float32.  STORM uses unimix = 0.01, as DreamerV3 does.
    """
    logits = logits.float()
    if unimix == 0.0:
        return F.log_softmax(logits, dim=-1)
    probabilities = F.softmax(logits, dim=-1)
    return torch.log(probabilities * (1.0 - unimix) + unimix / logits.shape[-1])


def sample(log_probs: Tensor) -> Tensor:
    """Draw one class per row by inverting the cumulative distribution: one uniform number and a running sum.

    log_probs: (..., K) float32.  Returns (...,) int64.
    """
    return sample_probabilities(log_probs.float().exp())


def sample_probabilities(probabilities: Tensor) -> Tensor:
    """``sample`` of probabilities instead of their logarithms.  (..., K) float32.  Returns (...,) int64."""
    if probabilities.is_cuda and torch.are_deterministic_algorithms_enabled():
        # CUDA's cumsum of floats may differ from run to run, and is refused.
        cumulative = running_sum_by_product(probabilities)
    else:
        cumulative = probabilities.cumsum(dim=-1)
    # Scaling by the row's total makes rounding of the running sum harmless; uniforms are below 1, so the class exists.
    threshold = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
    return (cumulative <= threshold).sum(dim=-1).clamp_(max=cumulative.shape[-1] - 1)


def running_sum_by_product(values: Tensor) -> Tensor:
    """The running sum by a matrix product, in float64: neither autocast nor TF32 rounds it.  (..., K) float32."""
    size = values.shape[-1]
    triangle = torch.ones(size, size, dtype=torch.float64, device=values.device).triu()
    return (values.double() @ triangle).float()


def one_hot(index: Tensor, classes: int) -> Tensor:
    """float32 one-hot rows.  index: (...,) int64.  Returns (..., classes)."""
    return torch.zeros(*index.shape, classes, device=index.device).scatter_(-1, index.unsqueeze(-1), 1.0)


def sample_straight_through(log_probs: Tensor) -> Tensor:
    """One-hot samples with the gradient of the probabilities (Bengio et al. 2013), STORM's equation 1.

    log_probs: (..., K) float32.  Returns (..., K) float32.
    """
    probabilities = log_probs.exp()
    return straight_through(one_hot(sample_probabilities(probabilities.detach()), log_probs.shape[-1]), probabilities)


def straight_through(hard: Tensor, probabilities: Tensor) -> Tensor:
    """The value of ``hard`` with the gradient of the probabilities.  Both (..., K) float32."""
    # The difference is exactly zero. A function of our own would keep PyTorch from caching what it has compiled.
    return hard + (probabilities - probabilities.detach())


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis.  log_probs: (..., K) float32.  Returns (...,).

    >>> round(entropy(torch.full((4,), 0.25).log()).item(), 4)
    1.3863
    """
    log_probs = log_probs.float()
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def divergence(log_probs: Tensor, other: Tensor) -> Tensor:
    """KL divergence in nats of G independent categoricals from G others.  Both (..., G, K) float32.  Returns (...,).

    >>> certain = torch.tensor([[[1.0, 0.0]]]).clamp(min=1e-30).log()
    >>> round(divergence(certain, torch.full((1, 1, 2), 0.5).log()).item(), 4)
    0.6931
    """
    probabilities = log_probs.exp()
    return (probabilities * log_probs).sum(dim=(-2, -1)) - (probabilities * other).sum(dim=(-2, -1))

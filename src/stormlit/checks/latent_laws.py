"""What a latent promises beside shapes, whatever its distribution is; ``laws`` runs these for every latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stormlit.checks.trials import ask, expect_losses


def divergence_of(part: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The divergence as a function of embeddings (..., E) and hidden states (..., D)."""
    return lambda embed, hidden: part.divergence(part.posterior(embed), part.prior(hidden))


def moves_both_sides(case: Any) -> None:
    """a sample's gradient reaches the frame's embedding, and the divergence's the hidden state that the prior reads"""
    part = case.part().train()
    embed, hidden = (torch.randn(4, 3, width).requires_grad_() for width in case.given)
    sample = part.sample(part.posterior(embed))
    if sample.requires_grad:
        (sample * torch.randn(sample.shape)).sum().backward()
    if embed.grad is None or not embed.grad.any():
        raise case.fail(": sample passes no gradient to the embedding")
    nats = part.divergence(part.posterior(embed.detach()).detach(), part.prior(hidden))
    if nats.requires_grad:
        nats.sum().backward()
    if hidden.grad is None or not hidden.grad.any():
        raise case.fail(": divergence passes no gradient to the prior")


def nats_make_sense(case: Any) -> None:
    """divergences are at least 0, and 0 between equal distributions; entropies are finite; far from 0 too"""
    part = case.part()
    for scale in (0.1, 1.0, 10.0):
        with torch.no_grad():
            posterior, prior = (
                getattr(part, side)(scale * torch.randn(64, width))
                for side, width in zip(("posterior", "prior"), case.given, strict=True)
            )
            lowest = min(float(part.divergence(*pair).min()) for pair in ((posterior, prior), (prior, posterior)))
            between_equals = max(float(part.divergence(x, x).abs().max()) for x in (posterior, prior))
            entropies = torch.stack([part.entropy(posterior), part.entropy(prior)])
        if not lowest >= -1e-3:
            raise case.fail(f": divergence gives {lowest:.3g} nats where at least 0 is expected")
        if not between_equals <= 1e-3:
            raise case.fail(f": divergence gives {between_equals:.3g} nats between equal distributions")
        if not entropies.isfinite().all():
            raise case.fail(": entropy is not finite")


def leading_axes_are_free(case: Any) -> None:
    """a distribution may be indexed along its leading axes, of which there may be any number"""
    part = case.part()
    with torch.no_grad():
        embed, hidden = (torch.randn(3, 4, width) for width in case.given)
        posterior, prior = part.posterior(embed), part.prior(hidden)
        for where in ((slice(None), slice(1, None)), (0,)):
            alone = ask(f"{case.who}: posterior", part.posterior, embed[where])
            if alone.shape != posterior[where].shape or not torch.allclose(alone, posterior[where], atol=1e-4):
                raise case.fail(": posterior mixes its leading axes")
            for name, seen, expected in (
                ("entropy", part.entropy(posterior[where]), part.entropy(posterior)[where]),
                (
                    "divergence",
                    part.divergence(posterior[where], prior[where]),
                    part.divergence(posterior, prior)[where],
                ),
            ):
                if seen.shape != expected.shape or not torch.allclose(seen, expected, atol=1e-4, rtol=1e-4):
                    raise case.fail(f": {name} mixes the leading axes")


def sample_repeats(case: Any) -> None:
    """from the same random state comes the same sample"""
    part, samples = case.part(), []
    with torch.no_grad():
        distribution = part.posterior(torch.randn(4, 3, case.given[0]))
        for _ in range(2):
            torch.manual_seed(1)
            samples.append(part.sample(distribution))
    if not torch.equal(*samples):
        raise case.fail(": sample gives something else from the same random state")


def auxiliary_is_named(case: Any) -> None:
    """what it adds to the loss, if anything, are finite float32 scalars with a name and a scale each"""
    part = case.part()
    if hasattr(part, "auxiliary"):
        posterior = part.posterior(torch.randn(4, 3, case.given[0]))
        expect_losses(f"{case.who}: auxiliary", ask(f"{case.who}: auxiliary", part.auxiliary, posterior))


LATENT_LAWS = (moves_both_sides, nats_make_sense, leading_axes_are_free, sample_repeats, auxiliary_is_named)

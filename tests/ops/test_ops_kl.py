"""Free bits and balance of the KL divergence: its masked halves, here of categoricals."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from stormlit.ops import losses
from stormlit.ops.categorical import divergence, unimix_log_probs

kl_balance = functools.partial(losses.kl_balance, divergence)
EVERY = torch.ones(1, 2, dtype=torch.bool)


def _two_steps() -> tuple[Tensor, Tensor]:
    """One group of two classes whose KL is 0 at the first step and ln 2 at the second.

    Step 0: both (0.5, 0.5), KL = 0.  Step 1: (1, 0) against (0.5, 0.5), KL = 1 ln(1 / 0.5) = ln 2 = 0.6931.
    """
    almost_zero = 1e-30
    posterior = torch.tensor([[[[0.5, 0.5]], [[1.0, almost_zero]]]]).log()
    return posterior, torch.full((1, 2, 1, 2), 0.5).log()


def _random(seed: int, shape: tuple[int, ...] = (3, 5, 4, 6)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def test_gradients_reach_only_the_prior_in_dyn_and_only_the_posterior_in_rep() -> None:
    post_logits, prior_logits = _random(0), _random(1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    dyn, rep, _ = kl_balance(unimix_log_probs(post_logits, 0.01), unimix_log_probs(prior_logits, 0.01), mask, 0.0)
    dyn.backward(retain_graph=True)
    assert post_logits.grad is None or not post_logits.grad.any()
    assert prior_logits.grad is not None and prior_logits.grad.any()
    prior_logits.grad = None
    rep.backward()
    assert prior_logits.grad is None or not prior_logits.grad.any()
    assert post_logits.grad is not None and post_logits.grad.any()


def test_steps_below_the_free_bits_get_no_gradient() -> None:
    post_logits, prior_logits = _random(0), _random(1)
    posterior, prior = unimix_log_probs(post_logits, 0.01), unimix_log_probs(prior_logits, 0.01)
    step_kl = (posterior.exp() * (posterior - prior)).sum(dim=(-2, -1)).detach()
    middle = float(step_kl.median())
    dyn, _, _ = kl_balance(posterior, prior, torch.ones(3, 5, dtype=torch.bool), middle)
    dyn.backward()
    assert prior_logits.grad is not None
    moved = prior_logits.grad.flatten(2).any(-1)
    assert torch.equal(moved[step_kl != middle], step_kl[step_kl != middle] > middle)


def test_masked_steps_count_for_nothing() -> None:
    posterior, prior = _two_steps()
    only_second = torch.tensor([[False, True]])
    dyn, rep, nats = kl_balance(posterior, prior, only_second, free_bits=0.5)
    for term in (dyn, rep, nats):
        torch.testing.assert_close(term, torch.tensor(math.log(2)))
    assert kl_balance(posterior, prior, ~EVERY, free_bits=0.5) == (0.0, 0.0, 0.0)
    logits = _random(2, (1, 2, 1, 2))
    kl_balance(posterior, unimix_log_probs(logits, 0.01), only_second, free_bits=0.0)[0].backward()
    assert logits.grad is not None and not logits.grad[0, 0].any() and logits.grad[0, 1].any()

"""Categorical distributions: mixing, sampling, gradients, entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from small import assert_distributed_as
from stormlit.ops.categorical import (
    entropy,
    one_hot,
    running_sum_by_product,
    sample,
    straight_through,
    unimix_log_probs,
)

DRAWS = 200_000


def _counts(probabilities: torch.Tensor, draws: int = DRAWS, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return sample(probabilities.log().expand(draws, -1)).bincount(minlength=len(probabilities))


def test_unimix_by_hand() -> None:
    # softmax(0, ln 3) = (0.25, 0.75); 90% of it plus 10% of (0.5, 0.5): (0.275, 0.725).
    logits = torch.tensor([0.0, math.log(3)])
    torch.testing.assert_close(unimix_log_probs(logits, 0.1).exp(), torch.tensor([0.275, 0.725]))
    torch.testing.assert_close(unimix_log_probs(logits, 0.0).exp(), torch.tensor([0.25, 0.75]))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=16), st.floats(0.001, 1))
def test_unimix_is_normalised_and_never_below_its_floor(logits: list[float], unimix: float) -> None:
    probabilities = unimix_log_probs(torch.tensor(logits), unimix).exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    assert float(probabilities.min()) >= unimix / len(logits) * (1 - 1e-4)


def test_samples_follow_probabilities_with_impossible_classes_anywhere() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.4999, 0.0001, 0.0])
    assert_distributed_as(_counts(probabilities), probabilities)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_extreme_uniform_numbers_do_not_draw_impossible_classes(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 and the float below 1 come once in 17 million draws: too rare to wait for, too often to be wrong."""
    probabilities = torch.tensor([0.0, 0.3, 0.3, 0.3, 0.1, 0.0, 0.0])
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, uniform))
    assert int(sample(probabilities.log())) == (1 if uniform == 0.0 else 4)


def test_running_sums_by_a_product_are_the_plain_ones_also_in_mixed_precision() -> None:
    """What CUDA does where results must be the same in every run; in bfloat16 differences would be 1e-3."""
    probabilities = torch.rand(5, 3, 32, generator=torch.Generator().manual_seed(0)).softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = running_sum_by_product(probabilities)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, probabilities.cumsum(-1), atol=2e-7, rtol=0)


def test_rows_are_drawn_independently_of_each_other() -> None:
    # Two fair groups in one row: their four joint outcomes are equally likely.
    torch.manual_seed(0)
    pairs = sample(torch.full((DRAWS, 2, 2), math.log(0.5)))
    assert pairs.shape == (DRAWS, 2) and pairs.dtype == torch.int64
    assert_distributed_as((2 * pairs[:, 0] + pairs[:, 1]).bincount(minlength=4), torch.full((4,), 0.25))


def test_straight_through_has_the_sample_s_value_and_the_probabilities_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 4, requires_grad=True)
    direction = torch.randn(5, 4)
    log_probs = unimix_log_probs(logits, 0.01)
    hard = one_hot(sample(log_probs.detach()), 4)
    passed = straight_through(hard, log_probs.exp())
    assert torch.equal(passed, hard)
    (gradient,) = torch.autograd.grad((passed * direction).sum(), logits)
    probabilities = logits.softmax(-1) * 0.99 + 0.01 / 4
    (expected,) = torch.autograd.grad((probabilities * direction).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_entropy_by_hand() -> None:
    # -(0.5 ln 0.5 + 2 * 0.25 ln 0.25) = 1.5 ln 2 = 1.039721 nats; a near-certain class has none.
    log_probs = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]]).log()
    torch.testing.assert_close(entropy(log_probs), torch.tensor([1.0397208, 0.0]))

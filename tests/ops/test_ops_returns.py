"""Lambda-returns and trajectory weights, by hand and by their equivalences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stormlit.ops.returns import lambda_returns, trajectory_weights

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(0, 2**31 - 1))


def _random(rows: int, horizon: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(rows, horizon, generator=generator)
    value = torch.randn(rows, horizon + 1, generator=generator)
    return reward, value, torch.rand(rows, horizon, generator=generator)


def test_three_steps_by_hand() -> None:
    # lambda = 0.5, rewards 1, 2, 3, discounts 0.9, 0.5, 0.8, values V_0..V_3 = 100, 10, 20, 30 (V_0 plays no part).
    # G_2 = 3 + 0.8 (0.5 * 30 + 0.5 * 30)    = 27
    # G_1 = 2 + 0.5 (0.5 * 20 + 0.5 * 27)    = 13.75
    # G_0 = 1 + 0.9 (0.5 * 10 + 0.5 * 13.75) = 11.6875
    returns = lambda_returns(
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[100.0, 10.0, 20.0, 30.0]]),
        torch.tensor([[0.9, 0.5, 0.8]]),
        lambda_=0.5,
    )
    torch.testing.assert_close(returns, torch.tensor([[11.6875, 13.75, 27.0]]))


@given(SHAPES, st.floats(0, 1))
def test_the_equation_holds_between_neighbouring_steps(shape: tuple[int, int, int], lambda_: float) -> None:
    reward, value, discount = _random(*shape)
    returns = lambda_returns(reward, value, discount, lambda_)
    assert returns.shape == reward.shape
    following = torch.cat([returns[:, 1:], value[:, -1:]], dim=1)
    expected = reward + discount * ((1 - lambda_) * value[:, 1:] + lambda_ * following)
    torch.testing.assert_close(returns, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("reward", "value", "discount"), [((2, 3), (2, 3), (2, 3)), ((2, 3), (2, 4), (2, 4)), ((3,), (4,), (3,))]
)
def test_shapes_that_do_not_fit_are_refused(
    reward: tuple[int, ...], value: tuple[int, ...], discount: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"reward \(N, H\), discount \(N, H\) and value \(N, H \+ 1\)"):
        lambda_returns(torch.zeros(reward), torch.zeros(value), torch.zeros(discount), 0.95)


def test_weights_by_hand() -> None:
    # Row 0 is alive: w = 1, 0.5, 0.5 * 0.4 = 0.2; its last continuation says nothing about a state that is scored.
    # Row 1 is already past an end: all zero.
    weights = trajectory_weights(torch.tensor([[0.5, 0.4, 0.3], [0.9, 0.9, 0.9]]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.5, 0.2], [0.0, 0.0, 0.0]]))

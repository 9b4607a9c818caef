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


@given(SHAPES)
def test_lambda_one_is_the_discounted_return_with_a_bootstrap(shape: tuple[int, int, int]) -> None:
    reward, value, discount = _random(*shape)
    expected = torch.empty_like(reward)
    for row in range(reward.shape[0]):
        for start in range(reward.shape[1]):
            total, factor = 0.0, 1.0
            for t in range(start, reward.shape[1]):
                total += factor * float(reward[row, t])
                factor *= float(discount[row, t])
            expected[row, start] = total + factor * float(value[row, -1])
    torch.testing.assert_close(lambda_returns(reward, value, discount, 1.0), expected, atol=1e-5, rtol=1e-5)


@given(SHAPES)
def test_lambda_zero_is_the_one_step_target(shape: tuple[int, int, int]) -> None:
    reward, value, discount = _random(*shape)
    torch.testing.assert_close(lambda_returns(reward, value, discount, 0.0), reward + discount * value[:, 1:])


@given(SHAPES, st.floats(0, 1))
def test_the_equation_holds_between_neighbouring_steps(shape: tuple[int, int, int], lambda_: float) -> None:
    reward, value, discount = _random(*shape)
    returns = lambda_returns(reward, value, discount, lambda_)
    assert returns.shape == reward.shape
    following = torch.cat([returns[:, 1:], value[:, -1:]], dim=1)
    expected = reward + discount * ((1 - lambda_) * value[:, 1:] + lambda_ * following)
    torch.testing.assert_close(returns, expected, atol=1e-5, rtol=1e-5)


def test_zero_discount_cuts_off_everything_after_it() -> None:
    reward, value, discount = _random(2, 6, 0)
    discount[:, 2] = 0.0
    later_reward, later_value = reward.clone(), value.clone()
    later_reward[:, 3:] += 1000.0
    later_value[:, 3:] -= 1000.0
    returns = lambda_returns(reward, value, discount, 0.95)
    torch.testing.assert_close(returns[:, 2], reward[:, 2])
    changed = lambda_returns(later_reward, later_value, discount, 0.95)
    torch.testing.assert_close(changed[:, :3], returns[:, :3])
    assert ((changed - returns)[:, 3:].abs() > 1).all()


def test_returns_stay_float32_in_mixed_precision() -> None:
    reward, value, discount = (x.bfloat16() for x in _random(8, 16, 1))
    expected = lambda_returns(reward.float(), value.float(), discount.float(), 0.95)
    with torch.autocast("cpu", torch.bfloat16):
        returns = lambda_returns(reward, value, discount, 0.95)
    assert returns.dtype == torch.float32
    torch.testing.assert_close(returns, expected)


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


def test_weights_stay_float32_in_mixed_precision() -> None:
    continuation = torch.full((1, 64), 0.99).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        weights = trajectory_weights(continuation, torch.ones(1).bfloat16())
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights[0, -1], continuation.float()[0, 0] ** 63)

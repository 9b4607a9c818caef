"""Symlog two-hot encoding: by hand, against the dense encoding, and over all of the floats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from small import dense_cross_entropy, dense_twohot
from stormlit.nn.heads import READINGS
from stormlit.ops.twohot import (
    symexp,
    symexp_bins,
    symexp_twohot_decode,
    symexp_twohot_loss,
    symlog,
    symlog_bins,
    twohot_decode,
    twohot_loss,
    twohot_position,
)

BINS = symlog_bins(5, -2.0, 2.0)  # -2, -1, 0, 1, 2
PAPER_BINS = symlog_bins(255, -20.0, 20.0)
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def _encode(value: float, bins: torch.Tensor) -> torch.Tensor:
    lower, weight = twohot_position(torch.tensor(value), bins)
    encoding = torch.zeros(len(bins))
    encoding[lower] = 1 - weight
    encoding[lower + 1] += weight
    return encoding


def test_symlog_and_symexp_by_hand() -> None:
    # ln(1 + (e - 1)) = 1; odd functions; ln(1 + 1) = 0.6931.
    x = torch.tensor([0.0, math.e - 1, 1 - math.e, 1.0])
    y = torch.tensor([0.0, 1.0, -1.0, 0.6931472])
    torch.testing.assert_close(symlog(x), y)
    torch.testing.assert_close(symexp(y), x)


def test_bins_are_evenly_spaced() -> None:
    assert BINS.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert PAPER_BINS.shape == (255,)
    assert [float(PAPER_BINS[i]) for i in (0, 127, -1)] == pytest.approx([-20.0, 0.0, 20.0], abs=1e-5)
    torch.testing.assert_close(PAPER_BINS.diff(), torch.full((254,), 40 / 254), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, [0, 0, 1, 0, 0]),  # on the middle bin
        (math.e - 1, [0, 0, 0, 1, 0]),  # symlog = 1, on a bin
        (math.exp(0.25) - 1, [0, 0, 0.75, 0.25, 0]),  # symlog = 0.25: a quarter of the way from bin 0 to bin 1
        (1 - math.exp(1.4), [0.4, 0.6, 0, 0, 0]),  # symlog = -1.4: 0.6 of the way from bin -2 to bin -1
        (math.exp(2) - 1, [0, 0, 0, 0, 1]),  # the last bin
        (1e9, [0, 0, 0, 0, 1]),  # above the range
        (-math.inf, [1, 0, 0, 0, 0]),  # below the range
    ],
)
def test_encoding_by_hand(value: float, expected: list[float]) -> None:
    torch.testing.assert_close(_encode(value, BINS), torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


@given(FLOATS)
def test_position_is_inside_the_bins_and_agrees_with_the_dense_encoding(value: float) -> None:
    lower, weight = twohot_position(torch.tensor(value), PAPER_BINS)
    assert lower.dtype == torch.int64 and 0 <= lower <= 253
    assert weight.dtype == torch.float32 and 0.0 <= weight <= 1.0
    # The position is a float32 up to 254, good to about 5e-5.
    dense = torch.tensor(dense_twohot(value, PAPER_BINS.tolist()))
    torch.testing.assert_close(_encode(value, PAPER_BINS), dense, atol=2e-4, rtol=0)


def test_decoding_by_hand() -> None:
    # Half on bin 1, half on bin 2: symexp(1.5) = e^1.5 - 1 = 3.481689; uniform over symmetric bins: 0.
    half = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5]).log()
    torch.testing.assert_close(twohot_decode(torch.stack([half, torch.zeros(5)]), BINS), torch.tensor([3.481689, 0.0]))


@given(FLOATS, st.integers(0, 2**31 - 1))
def test_loss_is_the_dense_cross_entropy(value: float, seed: int) -> None:
    logits = 3 * torch.randn(255, generator=torch.Generator().manual_seed(seed))
    loss = float(twohot_loss(logits, torch.tensor(value), PAPER_BINS))
    assert loss == pytest.approx(dense_cross_entropy(logits, value, PAPER_BINS), abs=5e-3, rel=1e-4)


def test_a_target_that_is_not_a_number_gives_a_loss_that_is_not_a_number() -> None:
    """The learner skips losses that are not finite; an index out of range would end the run instead."""
    loss = twohot_loss(torch.zeros(2, 5), torch.tensor([math.nan, 0.0]), BINS)
    assert loss[0].isnan() and loss[1].isfinite()


# Between bins of the numbers themselves


SPREAD = symexp_bins(5, -2.0, 2.0)  # 1 - e^2, 1 - e, 0, e - 1, e^2 - 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, [0, 0, 1, 0, 0]),
        (math.e - 1, [0, 0, 0, 1, 0]),
        (1.0, [0, 0, 0.418023, 0.581977, 0]),  # 1 / (e - 1) of the way from 0 to e - 1
        (4.0, [0, 0, 0, 0.511507, 0.488493]),  # (4 - (e - 1)) / (e^2 - e) of the way
        (-1.0, [0, 0.581977, 0.418023, 0, 0]),
        (1e9, [0, 0, 0, 0, 1]),
        (-math.inf, [1, 0, 0, 0, 0]),
    ],
)
def test_numbers_lie_linearly_between_their_bins(value: float, expected: list[float]) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.0])
    loss = symexp_twohot_loss(logits, torch.tensor(value), SPREAD)
    torch.testing.assert_close(loss, -(torch.tensor(expected) * logits.log_softmax(-1)).sum(), atol=1e-5, rtol=1e-5)


def test_the_mean_is_of_the_numbers_and_not_of_their_logarithms() -> None:
    # 0 in nine of ten steps, e^2 - 1 in one: the mean is 0.6389, that of the symlogs 0.2, which is 0.2214.
    logits = torch.tensor([-50.0, -50.0, math.log(0.9), -50.0, math.log(0.1)])
    assert float(symexp_twohot_decode(logits, SPREAD)) == pytest.approx(0.1 * (math.e**2 - 1), abs=1e-5)
    assert float(twohot_decode(logits, BINS)) == pytest.approx(math.exp(0.2) - 1, abs=1e-5)


def test_fitting_rare_rewards_reads_their_mean() -> None:
    rewards = torch.tensor([0.0] * 96 + [10.0] * 3 + [400.0])
    reading = READINGS["symexp_twohot"](255, -20.0, 20.0)
    logits = torch.zeros(255, requires_grad=True)  # as a head that starts at zero has them
    assert abs(float(reading.decode(logits))) < 1e-6  # though the outermost bins are 5e8
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        reading.loss(logits.expand(100, 255), rewards).mean().backward()
        optimizer.step()
    assert float(reading.decode(logits)) == pytest.approx(4.3, rel=0.01)


def test_a_target_that_is_no_number_gives_a_loss_that_is_none() -> None:
    assert symexp_twohot_loss(torch.zeros(2, 5), torch.tensor([math.nan, 1.0]), SPREAD).isnan().tolist() == [
        True,
        False,
    ]

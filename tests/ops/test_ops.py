"""The equations as functions: by hand, by their properties, and over all of the floats."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from small import assert_distributed_as, dense_cross_entropy, dense_twohot, random_batch, small_world_model
from stormlit.nn.heads import READINGS
from stormlit.ops import losses
from stormlit.ops.categorical import (
    divergence,
    entropy,
    one_hot,
    running_sum_by_product,
    sample,
    straight_through,
    unimix_log_probs,
)
from stormlit.ops.losses import focus_weights, frame_errors, reconstruction_error
from stormlit.ops.masks import episode_causal_mask, last_start
from stormlit.ops.returns import lambda_returns, trajectory_weights
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


# ---- Free bits and balance of the KL divergence: its masked halves, here of categoricals


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


# ---- Lambda-returns and trajectory weights, by hand and by their equivalences


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(0, 2**31 - 1))


def _random_ops_returns(rows: int, horizon: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
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
    reward, value, discount = _random_ops_returns(*shape)
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


# ---- Which step sees which, by hand


IS_FIRST = torch.tensor([[False, False, True, False], [True, False, False, True], [False, False, False, False]])


def test_mask_by_hand() -> None:
    mask = episode_causal_mask(IS_FIRST)
    assert mask.dtype == torch.bool
    # An episode begins at step 2: steps 0 and 1 see the old one, steps 2 and 3 the new one.
    assert mask[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    # A start at step 0 hides nothing; one at step 3 hides all before.
    assert mask[1].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert mask[2].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_last_start_by_hand() -> None:
    assert last_start(IS_FIRST).tolist() == [2, 3, 0]
    assert last_start(torch.tensor([[True, True, False]])).tolist() == [1]


@given(st.lists(st.booleans(), min_size=1, max_size=24))
def test_a_step_sees_an_earlier_one_unless_an_episode_begins_in_between(starts: list[bool]) -> None:
    mask = episode_causal_mask(torch.tensor([starts]))[0]
    for query in range(len(starts)):
        for key in range(len(starts)):
            visible = key <= query and not any(starts[key + 1 : query + 1])
            assert bool(mask[query, key]) == visible


# ---- What moves, how much more it weighs, and the error there, by hand


# One window of two grey frames of two pixels: the left is always black, the right goes from black to white.
FRAMES = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 1, 2)


def test_weights_follow_the_distance_from_the_mean_frame() -> None:
    # Mean frame (0, 1/2); squared distances 0 and 1/4 in both frames, 1/8 on average.
    weights = focus_weights(FRAMES, 0.75)
    torch.testing.assert_close(weights, torch.tensor([[0.25, 1.75], [0.25, 1.75]]).view(1, 2, 1, 1, 2))


def test_channels_of_a_pixel_share_its_weight() -> None:
    red = torch.cat([FRAMES, torch.zeros(1, 2, 2, 1, 2)], dim=2)
    torch.testing.assert_close(focus_weights(red, 0.75), focus_weights(FRAMES, 0.75), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("focus", [0.0, 0.3, 1.0])
def test_weights_are_one_on_average_and_everywhere_where_nothing_moves(focus: float) -> None:
    frames = torch.rand(3, 4, 3, 5, 6)
    assert float(focus_weights(frames, focus).mean()) == pytest.approx(1.0, abs=1e-5)
    still = frames[:1, :1].expand(3, 4, 3, 5, 6)
    torch.testing.assert_close(focus_weights(still, focus), torch.ones(3, 4, 1, 5, 6), rtol=0, atol=1e-3)


def test_the_error_counts_what_moves_more() -> None:
    predicted = torch.tensor([[0.5, 0.0], [0.0, 0.0]]).view(1, 2, 1, 1, 2)
    assert float(reconstruction_error(predicted, FRAMES)) == pytest.approx(0.25 + 1.0)
    assert float(reconstruction_error(predicted, FRAMES, 0.75)) == pytest.approx(0.25 * 0.25 + 1.75 * 1.0)


def test_frame_errors_by_hand() -> None:
    predicted = torch.tensor([[0.5, 0.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    errors = frame_errors(predicted, FRAMES[0])  # the right pixel moves, by a half from its mean
    assert errors == pytest.approx({"all": 1.25 / 4, "moving": 1.0 / 2})
    assert frame_errors(predicted[:1], FRAMES[0, :1]).keys() == {"all"}


def test_the_world_model_focuses_where_it_is_told_to() -> None:
    batch = random_batch()
    terms = []
    for focus in (0.0, 0.9):
        world_model = small_world_model(reconstruction_focus=focus)
        torch.manual_seed(1)
        terms.append(world_model.losses(batch).terms["reconstruction"])
    torch.manual_seed(1)
    obs = batch.obs / 255.0
    latent = world_model.latent.sample(world_model.posterior(batch.obs))
    expected = reconstruction_error(world_model.decode(latent).image, obs, 0.9) / math.prod(batch.action.shape)
    torch.testing.assert_close(terms[1], expected)
    assert not torch.isclose(terms[0], terms[1], rtol=1e-3)


# ---- Symlog two-hot encoding: by hand, against the dense encoding, and over all of the floats


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

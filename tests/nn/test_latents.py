"""The distributions of latents by hand: samples, entropies, divergences, and what a latent adds to the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from small import random_batch, small_part, small_world_model
from stormlit.nn.latents.quantised import IMPOSSIBLE, code_use, nearest
from stormlit.nn.optimizers import adam
from stormlit.ops import normal
from stormlit.registry import build, names


def latent(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return build("latent", {"name": name, **options}, 6, 5)


# Normals


def test_the_divergence_of_normals_by_hand() -> None:
    # N(1, 0.5^2) from N(0, 2^2): ln(2 / 0.5) + (0.25 + 1) / (2 * 4) - 1/2 = 1.3863 + 0.15625 - 0.5 = 1.0425.
    # N(3, 1) from N(1, 1): 2^2 / 2 = 2. A latent of both: 3.0425.
    part = latent("gaussian", dimensions=2)
    posterior = torch.tensor([[1.0, 3.0], [0.5, 1.0]])
    prior = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert float(part.divergence(posterior, prior)) == pytest.approx(math.log(4) - 0.34375 + 2.0, abs=1e-5)


def test_the_entropy_of_normals_by_hand() -> None:
    # ln(std sqrt(2 pi e)): 1.4189 for standard deviation 1, 1.4189 + ln 2 for 2.
    assert float(normal.entropy(torch.tensor([1.0, 2.0]))) == pytest.approx(2 * 1.418939 + math.log(2), abs=1e-5)


def test_a_gaussian_sample_is_mean_plus_std_times_noise_and_both_get_gradients() -> None:
    part = latent("gaussian", dimensions=3)
    mean, std = torch.tensor([1.0, 2.0, 3.0]).requires_grad_(), torch.tensor([0.1, 0.5, 1.0]).requires_grad_()
    torch.manual_seed(1)
    sample = part.sample(torch.stack([mean, std]))
    torch.manual_seed(1)
    noise = torch.randn(3)
    torch.testing.assert_close(sample, mean + std * noise)
    sample.sum().backward()
    assert mean.grad is not None and torch.equal(mean.grad, torch.ones(3))
    assert std.grad is not None and torch.equal(std.grad, noise)


def test_standard_deviations_stay_within_their_bounds() -> None:
    part = latent("gaussian", dimensions=4, min_std=0.2, max_std=0.7)
    std = part.posterior(1000.0 * torch.randn(50, 6)).detach()[:, 1]
    assert float(std.min()) == pytest.approx(0.2) and float(std.max()) == pytest.approx(0.7)
    with torch.no_grad():
        part.posterior_head.weight.zero_()
        part.posterior_head.bias.zero_()
    torch.testing.assert_close(part.posterior(torch.randn(6))[1], torch.full((4,), 0.45))


# Codes


def codes_at_the_axes() -> Any:
    """Two groups of the codes (1, 0), (0, 1), (-1, 0); a frame's points lie at (0.8, 0.6) and (-0.6, 0.8)."""
    part = latent("vq", groups=2, codes=3, code_dim=2, commitment=0.5)
    with torch.no_grad():
        part.codebook.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]))
        part.posterior_head.weight.zero_()
        part.posterior_head.bias.copy_(torch.tensor([4.0, 3.0, -3.0, 4.0]))
    return part


def test_a_point_takes_its_nearest_code() -> None:
    posterior = codes_at_the_axes().posterior(torch.randn(6))
    assert posterior.tolist() == [
        [0.0, IMPOSSIBLE, IMPOSSIBLE, pytest.approx(0.8), pytest.approx(0.6)],
        [IMPOSSIBLE, 0.0, IMPOSSIBLE, pytest.approx(-0.6), pytest.approx(0.8)],
    ]
    assert nearest(torch.tensor([[0.1, 0.9], [-5.0, 1.0]]), codes_at_the_axes().codes()).tolist() == [1, 2]


def test_a_sample_of_codes_is_the_codes_with_the_gradient_of_the_points() -> None:
    part = codes_at_the_axes()
    posterior = part.posterior(torch.randn(6)).detach().requires_grad_()
    sample = part.sample(posterior)
    torch.testing.assert_close(sample, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    (sample * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert posterior.grad is not None
    assert posterior.grad[:, 3:].tolist() == [[1.0, 2.0], [3.0, 4.0]] and not posterior.grad[:, :3].any()


def test_the_divergence_of_codes_is_the_priors_cross_entropy() -> None:
    # The prior gives the two codes taken 1/2 and 1/8: ln 2 + ln 8 = 2.7726. A posterior is certain: entropy 0.
    part = codes_at_the_axes()
    posterior = part.posterior(torch.randn(6))
    prior = torch.nn.functional.pad(torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125]]).log(), (0, 2))
    assert float(part.divergence(posterior, prior)) == pytest.approx(math.log(16), abs=1e-5)
    assert float(part.entropy(posterior)) == 0.0
    drawn = torch.stack([part.sample(prior) for _ in range(4000)]).unflatten(-1, (2, 2))
    assert float((drawn[:, 1] == torch.tensor([1.0, 0.0])).all(-1).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_codebook_and_commitment_are_squared_distances_that_move_one_side_each() -> None:
    # (0.8, 0.6) to (1, 0): 0.04 + 0.36 = 0.4.  (-0.6, 0.8) to (0, 1): 0.36 + 0.04 = 0.4.  Together 0.8.
    part = codes_at_the_axes()
    losses = part.auxiliary(part.posterior(torch.randn(3, 6)))
    assert {name: float(term.detach()) for name, term in losses.terms.items()} == pytest.approx(
        {"codebook": 0.8, "commitment": 0.8}, abs=1e-5
    )
    assert losses.scales == {"codebook": 1.0, "commitment": 0.5}
    losses.terms["codebook"].backward()
    assert part.codebook.grad.any() and part.posterior_head.bias.grad is None
    part.codebook.grad = None
    losses.terms["commitment"].backward()
    assert part.codebook.grad is None and part.posterior_head.bias.grad.any()


def test_code_use_counts_the_codes_that_are_taken_equally_often() -> None:
    # One group takes 2 of 4 codes half of the time each: 2. The other one takes one code: 1. On average 1.5.
    chosen = torch.tensor([[0, 3], [1, 3]])
    assert float(code_use(((1 - torch.nn.functional.one_hot(chosen, 4)) * IMPOSSIBLE).float())) == pytest.approx(1.5)
    assert (
        float(codes_at_the_axes().auxiliary(codes_at_the_axes().posterior(torch.randn(5, 6))).metrics["code_use"]) == 2
    )


def test_finite_scalars_are_rounded_to_evenly_spaced_levels() -> None:
    # Five levels: -1, -0.5, 0, 0.5, 1. tanh(0.2) = 0.197, tanh(1) = 0.762 and tanh(-3) = -0.995.
    part = latent("fsq", groups=3, levels=5)
    with torch.no_grad():
        part.posterior_head.weight.zero_()
        part.posterior_head.bias.copy_(torch.tensor([0.2, 1.0, -3.0]))
    posterior = part.posterior(torch.randn(6))
    assert part.sample(posterior).tolist() == pytest.approx([0.0, 1.0, -1.0])
    torch.testing.assert_close(posterior[:, -1], torch.tensor([0.2, 1.0, -3.0]).tanh())
    # A uniform prior: 3 ln 5.
    assert float(part.divergence(posterior, torch.nn.functional.pad(torch.full((3, 5), 0.2).log(), (0, 1)))) == (
        pytest.approx(3 * math.log(5), abs=1e-5)
    )


# Without chance


def test_the_distance_of_deterministic_latents_by_hand() -> None:
    # Half of 0.5^2 + 1^2 = 0.625.
    part = latent("deterministic", dimensions=2)
    z = torch.tensor([0.5, -0.5])
    assert float(part.divergence(z, torch.tensor([0.0, 0.5]))) == pytest.approx(0.625)
    assert torch.equal(part.sample(z), z) and float(part.entropy(z)) == 0.0


# In a world model


@pytest.mark.parametrize("name", names("latent"))
def test_every_latent_learns_one_batch(name: str) -> None:
    world_model = small_world_model(latent=small_part("latent", name)).train()
    optimizer, batch, totals = (
        adam(world_model.parameters(), world_model.optimizer_settings, fused=True),
        random_batch(4, 8, starts=((1, 4),)),
        [],
    )
    for _ in range(60):
        total = world_model.losses(batch).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.6 * totals[0]

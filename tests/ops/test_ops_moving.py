"""What moves, how much more it weighs, and the error there, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from small import random_batch, small_world_model
from stormlit.ops.losses import focus_weights, frame_errors, reconstruction_error

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

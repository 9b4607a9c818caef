"""What moves in a batch of frames, and how far a reconstruction is off there.

Most of a game's frame never changes, and the few pixels one plays for weigh next to nothing in a plain mean. A pixel's
distance from the mean of the frames at its place tells the two apart without knowing the game.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

MOVES = 0.1  # of the range from black to white, in any channel: more than the noise of resizing


def focus_weights(obs: Tensor, focus: float) -> Tensor:
    """Weights of pixels whose mean over all of the batch is 1: ``1 - focus + focus * distance / mean(distance)``.

    The distance is the squared one from the batch's mean frame, averaged over channels, so that a pixel's share of the
    weight is its share of the variance. Batches without any motion get 1 everywhere.
    obs: (B, T, C, Y, X) in [0, 1].  focus: in [0, 1].  Returns (B, T, 1, Y, X).
    """
    distance = (obs - obs.mean(dim=(0, 1))).square().mean(dim=2, keepdim=True) + 1e-8
    return 1.0 - focus + focus * distance / distance.mean()


def reconstruction_error(obs_hat: Tensor, obs: Tensor, focus: float = 0.0) -> Tensor:
    """Squared error, summed over everything; with ``focus`` each pixel's is weighted by ``focus_weights``.

    obs_hat, obs: (B, T, C, Y, X), obs in [0, 1].  Returns a scalar.
    """
    if focus == 0.0:
        return F.mse_loss(obs_hat, obs, reduction="sum")
    return ((obs_hat - obs).square() * focus_weights(obs, focus)).sum()


def frame_errors(obs_hat: Tensor, obs: Tensor) -> dict[str, float]:
    """Mean squared errors over pixels and channels: of all of the frames (``all``) and of what moves (``moving``).

    A pixel moves where, in some channel, it is more than ``MOVES`` away from the mean of the frames at its place;
    ``moving`` is left out where nothing does.  obs_hat, obs: (T, C, Y, X) in [0, 1].
    """
    error = (obs_hat - obs).square().mean(dim=1)
    moves = ((obs - obs.mean(dim=0)).abs() > MOVES).any(dim=1)
    found = {"all": float(error.mean())}
    return {**found, "moving": float(error[moves].mean())} if moves.any() else found

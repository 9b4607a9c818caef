"""Looking into the world model: real, reconstructed and imagined frames side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stormlit.ops.moving import frame_errors
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.world_model import WorldModel, hidden_before, pixels
from stormlit.types import Batch, WorldState


@dataclass(slots=True)
class Dream:
    """One window of T real steps, and what the model made of it; frames are (T, Y, X, C) uint8, numbers (T,) float32.

    ``action`` is (T, *shape) as stored.
    From step ``context_length`` on, ``imagined`` is a free run of the model under the actions really taken.
    ``predicted_reward`` and ``end_probability`` are read along that run, for the action at each step.
    """

    real: np.ndarray
    reconstructed: np.ndarray
    imagined: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    predicted_reward: np.ndarray
    end_probability: np.ndarray
    context_length: int


LONGEST_DREAM = 64


def dream_length(world_model: WorldModel, batch_length: int) -> int:
    """Steps of a dream: at most what the sequence model has positions for, and what it was trained on.

    batch_length: of the windows it was trained on; positions beyond them are as random as they began.
    """
    return max(min(world_model.sequence_model.max_length or LONGEST_DREAM, LONGEST_DREAM, batch_length), 2)


def dream_errors(seen: Dream) -> dict[str, float]:
    """Mean squared errors of a dream's frames in [0, 1]: ``error_reconstructed`` of all pixels, and with the ending
    ``_moving`` of those that move; ``error_imagined`` alike, over the steps that were imagined.
    """
    found = {}
    dreamt = slice(seen.context_length, None)
    for name, predicted, real in (
        ("reconstructed", seen.reconstructed, seen.real),
        ("imagined", seen.imagined[dreamt], seen.real[dreamt]),
    ):
        if len(real):
            frames = (torch.from_numpy(film).permute(0, 3, 1, 2) / 255.0 for film in (predicted, real))
            errors = frame_errors(*frames)
            found.update({f"error_{name}{'_moving' if over == 'moving' else ''}": errors[over] for over in errors})
    return found


@torch.no_grad()
def dream(world_model: WorldModel, window: Batch, context_length: int) -> Dream:
    """Reconstruct a window, and imagine all of it after the first ``context_length`` steps.

    window: one row, (1, T, ...).  context_length: at most T - 1 is used, and at least 1.  The world model should be in
    evaluation mode.
    """
    length = window.action.shape[1]
    context_length = max(min(context_length, length - 1), 1)
    latent, action = world_model.sample_posterior(window.obs), world_model.encode_action(window.action)
    seen = world_model.sequence_model(latent, action, window.is_first)
    reconstructed = world_model.decode(latent, hidden_before(seen, window.is_first))
    hidden, memory = world_model.sequence_model.prefill(
        latent[:, :context_length], action[:, :context_length], window.is_first[:, :context_length], length
    )
    latents, hiddens = [latent[:, :context_length]], [hidden]
    last = hidden[:, -1]
    state = WorldState(world_model.sample_prior(last), last, memory)
    for t in range(context_length, length):
        assert isinstance(state.latent, torch.Tensor)  # as the state began
        latents.append(state.latent.unsqueeze(1))
        state = world_model.step(state, window.action[:, t])
        hiddens.append(state.hidden.unsqueeze(1))
    hidden = torch.cat(hiddens, dim=1)
    imagined = world_model.decode(torch.cat(latents, dim=1), hidden_before(hidden, window.is_first))
    frames = [pixels(x)[0].permute(0, 2, 3, 1).cpu().numpy() for x in (reconstructed, imagined)]
    return Dream(
        real=window.obs[0].permute(0, 2, 3, 1).cpu().numpy(),
        reconstructed=frames[0],
        imagined=frames[1],
        action=window.action[0].cpu().numpy(),
        reward=window.reward[0].cpu().numpy(),
        terminated=window.terminated[0].cpu().numpy(),
        predicted_reward=world_model.reward(hidden)[0].cpu().numpy(),
        end_probability=(1.0 - world_model.continuation(hidden))[0].cpu().numpy(),
        context_length=context_length,
    )


def dream_window(replay: ReplayBuffer, length: int, device: torch.device, seed: int) -> Batch:
    """A stretch of one episode, of ``length`` steps where there is one, else the longest of some random draws.

    A dream cannot know of a reset, so the stretch ends where the next episode starts.
    seed: of the draw.  Returns one row, (1, T, ...), on ``device``.
    """
    length = min(length, replay.rows)
    drawn = replay.sample(64, length, torch.Generator().manual_seed(seed))
    steps = torch.arange(length, device=drawn.is_first.device)
    episode = drawn.is_first.long().cumsum(dim=1)
    # Steps of each window's longest episode, and which episode that is.
    sizes = torch.stack([(episode == number).sum(dim=1) for number in range(int(episode.max()) + 1)])
    row = int(sizes.amax(dim=0).argmax())
    inside = steps[episode[row] == sizes[:, row].argmax()]
    stretch = slice(int(inside[0]), int(inside[-1]) + 1)
    return drawn.map(lambda tensor: tensor[row : row + 1, stretch]).to(device)

"""Looking into the world model: real, reconstructed and imagined frames side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from stormlit.data import Batch, WorldState
from stormlit.ops.losses import frame_errors
from stormlit.ops.spaces import pixels, split
from stormlit.ops.twohot import symexp, symlog
from stormlit.spaces import Seen
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.world_model import WorldModel, hidden_before


@dataclass(slots=True)
class Views:
    """T steps of what was seen, and what the model made of them: frames (T, Y, X, C) uint8, or numbers (T, V) float32.

    From step ``context_length`` of the dream on, ``imagined`` is a free run of the model.
    """

    real: np.ndarray
    reconstructed: np.ndarray
    imagined: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Views:
        """What ``function`` makes of each."""
        return Views(function(self.real), function(self.reconstructed), function(self.imagined))


@dataclass(slots=True)
class Dream:
    """One window of T real steps, and what the model made of it; numbers are (T,) float32.

    frames, vector: of the image and of the vectors, None for what is not seen; vectors in the environment's own units.
    ``action`` is (T, *shape) as stored.
    From step ``context_length`` on, the model runs freely under the actions really taken.
    ``predicted_reward`` and ``end_probability`` are read along that run, for the action at each step.
    first_known: the first step whose reconstruction counts: where the decoder reads the hidden state before a frame,
    that of the window's first frame is not known.
    """

    frames: Views | None
    vector: Views | None
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    predicted_reward: np.ndarray
    end_probability: np.ndarray
    context_length: int
    first_known: int = 0


LONGEST_DREAM = 64


def dream_length(world_model: WorldModel, batch_length: int) -> int:
    """Steps of a dream: at most what the sequence model has positions for, and what it was trained on.

    batch_length: of the windows it was trained on; positions beyond them are as random as they began.
    """
    return max(min(world_model.sequence_model.max_length or LONGEST_DREAM, LONGEST_DREAM, batch_length), 2)


def dream_errors(seen: Dream) -> dict[str, float]:
    """Mean squared errors of a dream's frames in [0, 1]: ``error_reconstructed`` of all pixels, and with the ending
    ``_moving`` of those that move; of its vectors in symlog with the ending ``_vector``. ``error_imagined`` alike, over
    the steps that were imagined.
    """
    found: dict[str, float] = {}
    for name, first in (("reconstructed", seen.first_known), ("imagined", seen.context_length)):
        steps = slice(first, None)
        if not len(seen.action[steps]):
            continue
        if seen.frames is not None:
            films = (getattr(seen.frames, name)[steps], seen.frames.real[steps])
            errors = frame_errors(*(torch.from_numpy(film).permute(0, 3, 1, 2) / 255.0 for film in films))
            found.update({f"error_{name}{'_moving' if over == 'moving' else ''}": errors[over] for over in errors})
        if seen.vector is not None:
            curves = (getattr(seen.vector, name)[steps], seen.vector.real[steps])
            predicted, real = (symlog(torch.from_numpy(numbers)) for numbers in curves)
            found[f"error_{name}_vector"] = float((predicted - real).square().mean())
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
        latents.append(state.latent.unsqueeze(1))
        state = world_model.step(state, window.action[:, t])
        hiddens.append(state.hidden.unsqueeze(1))
    hidden = torch.cat(hiddens, dim=1)
    imagined = world_model.decode(torch.cat(latents, dim=1), hidden_before(hidden, window.is_first))
    frames, vector = _views(split(world_model.observation_space, window.obs), reconstructed, imagined)
    return Dream(
        frames=frames,
        vector=vector,
        action=window.action[0].cpu().numpy(),
        reward=window.reward[0].cpu().numpy(),
        terminated=window.terminated[0].cpu().numpy(),
        predicted_reward=world_model.reward(hidden)[0].cpu().numpy(),
        end_probability=(1.0 - world_model.continuation(hidden))[0].cpu().numpy(),
        context_length=context_length,
        first_known=int(world_model.decoder_reads_hidden),
    )


def _views(real: Seen, reconstructed: Seen, imagined: Seen) -> tuple[Views | None, Views | None]:
    """Frames and vectors of a window (1, T, ...), real ones as they were stored and others as they were decoded."""
    frames = vector = None
    if real.image is not None and reconstructed.image is not None and imagined.image is not None:
        films = (real.image, pixels(reconstructed.image), pixels(imagined.image))
        frames = Views(*(film[0].permute(0, 2, 3, 1).cpu().numpy() for film in films))
    if real.vector is not None and reconstructed.vector is not None and imagined.vector is not None:
        curves = (real.vector, symexp(reconstructed.vector.float()), symexp(imagined.vector.float()))
        vector = Views(*(numbers[0].cpu().numpy() for numbers in curves))
    return frames, vector


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

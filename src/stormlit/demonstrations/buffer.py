"""The demonstrations of a run, drawn in windows as the replay buffer is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from stormlit.data import Batch
from stormlit.demonstrations.files import Demonstration, Timing, read_demonstration
from stormlit.envs import EnvFacts, EnvSettings, VectorEnv, env_id, resized_image
from stormlit.errors import CheckpointError, DemonstrationError
from stormlit.files import sha256
from stormlit.spaces import ObservationSpace
from stormlit.storm.replay import ReplayBuffer, ReplayRows


class DemonstrationBuffer:
    """Every step of some files, one after the other; nothing is added or overwritten later.

    Rewards, lost lives and frame sizes are made those of the environment that is trained on; each file begins an
    episode.

    files: at least one.  settings, envs: of that environment.  timing: as in ``read_demonstration``.
    life_losses: "ignored" are never termination, whatever ``settings`` say.  shortest: steps a file must have.
    device: where frames are kept.  seed: of the generator that draws windows.  mark_episode_starts: as in
    ``ReplayBuffer``.
    Raises ``DemonstrationError`` with the name of the first file that cannot be read or does not fit.
    """

    def __init__(
        self,
        files: Sequence[Path],
        settings: EnvSettings,
        envs: VectorEnv,
        *,
        timing: Timing = "aligned",
        life_losses: Literal["as_env", "ignored"] = "as_env",
        shortest: int,
        device: torch.device,
        seed: int,
        mark_episode_starts: bool,
    ) -> None:
        self.files = list(files)
        demonstrations = [read_demonstration(file, timing) for file in self.files]
        for file, demonstration in zip(self.files, demonstrations, strict=True):
            check_fits(file, demonstration, settings, envs, shortest)
        self.digests = [sha256(file) for file in self.files]
        self.steps = sum(len(demonstration) for demonstration in demonstrations)
        space = envs.observation_space
        self.storage = ReplayBuffer(
            self.steps,
            1,
            space,
            device=device,
            seed=seed,
            actions=envs.action_space,
            episode_starts="marked" if mark_episode_starts else "ignored",
        )
        end = 0
        for demonstration in demonstrations:
            end += len(demonstration)
            self.storage.restore(_rows(demonstration, settings, space, life_losses == "as_env"), end)

    def sample(self, batch_size: int, length: int) -> Batch:
        """Draw windows of ``length`` consecutive steps uniformly, as ``ReplayBuffer.sample`` does."""
        return self.storage.sample(batch_size, length)

    def state_dict(self) -> dict[str, Any]:
        """What was read, by its SHA-256, and where drawing stands; the steps are read again from the files."""
        return {"sha256": list(self.digests), "generator": self.storage.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``CheckpointError`` naming the first file that is not the one the run was trained with."""
        trained_with = state["sha256"]
        for file, digest, expected in zip(self.files, self.digests, trained_with, strict=False):
            if digest != expected:
                raise CheckpointError(
                    f"demonstrations.path: {file} is not the file that the run was trained with: its SHA-256 is "
                    f"{digest[:12]}..., expected {expected[:12]}..."
                )
        if len(self.files) != len(trained_with):
            raise CheckpointError(
                f"demonstrations.path names {len(self.files)} files, the last one {self.files[-1]}; the run was "
                f"trained with {len(trained_with)}"
            )
        self.storage.generator.set_state(state["generator"])


def check_fits(
    file: Path, demonstration: Demonstration, settings: EnvSettings, envs: VectorEnv | EnvFacts, shortest: int = 1
) -> None:
    """Raise ``DemonstrationError`` unless the demonstration is of this environment, as far as it tells."""
    origin, trained_on = demonstration.origin, env_id(settings)
    if origin.env_id is not None and origin.env_id != trained_on:
        raise DemonstrationError(f"{file} is a demonstration of {origin.env_id}, the environment is {trained_on}")
    if origin.action_meanings is not None and origin.action_meanings != envs.action_meanings:
        raise DemonstrationError(
            f"{file} has the actions {' '.join(origin.action_meanings)}, {trained_on} has "
            f"{' '.join(envs.action_meanings)}: compare env.atari.full_action_space"
        )
    shown, obs = envs.observation_space, demonstration.obs
    if obs.ndim != len(shown.shape) + 1 or obs.dtype != shown.dtype or (shown.vectors and obs.shape[1:] != shown.shape):
        raise DemonstrationError(f"{file} has observations {obs.dtype} {obs.shape[1:]}, {trained_on} has {shown}")
    if shown.image and not shown.vectors and obs.shape[3] not in (1, shown.image[2]):
        raise DemonstrationError(f"{file} has frames of {obs.shape[3]} channels, {trained_on} has {shown.image[2]}")
    if not np.isfinite(shown.numbers(obs)).all():
        raise DemonstrationError(f"{file} has numbers that are not finite in its observations")
    space = envs.action_space
    misfit = space.misfit(demonstration.action)
    if misfit is not None:
        raise DemonstrationError(f"{file}: 'action' is {misfit}, as {trained_on} has them")
    step = space.first_outside(demonstration.action)
    if step is not None:
        raise DemonstrationError(
            f"{file}: 'action' is {demonstration.action[step]} at step {step}, but {trained_on} has "
            f"{f'{space.num_actions} actions' if space.is_discrete else f'{space} actions'}, {space.range}"
        )
    if len(demonstration) < shortest:
        raise DemonstrationError(
            f"{file} has {len(demonstration)} steps, fewer than one window: expected at least {shortest}, the larger "
            "of loop.batch_length and imagination.context_length"
        )


def _rows(
    demonstration: Demonstration, settings: EnvSettings, space: ObservationSpace, life_losses: bool
) -> ReplayRows:
    """The demonstration as the environment would have told it.  Returns rows of one environment.

    life_losses: whether those can be termination.
    """
    obs = demonstration.obs
    if space.image and obs.shape[1:] != space.shape:  # images of another size
        *size, channels = space.image
        obs = np.stack([resized_image(frame, (size[0], size[1]), channels) for frame in obs])
    reward = demonstration.reward
    if settings.reward_transform == "sign":
        reward = np.sign(reward)
    terminated = demonstration.terminated
    if settings.life_loss_terminates and life_losses:
        terminated = terminated | demonstration.life_lost
    arrays = (obs, demonstration.action, reward, terminated, demonstration.is_first)
    # Copied: what was read from a file is read-only, which PyTorch does not know.
    return ReplayRows(*(torch.from_numpy(array[:, np.newaxis].copy()) for array in arrays))

"""Acting in real environments with a world model and an agent."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stormlit.agent import ActorCritic
from stormlit.errors import CheckpointError
from stormlit.world_model import WorldModel


class Player:
    """Keeps the last steps of N environments and acts on the current frame's latent and the hidden state up to it.

    Modules should be in evaluation mode; precision is the caller's autocast.

    num_envs: N.  context_length: how many past steps the sequence model reads, at least 1.
    latent: the policy sees the current frame's "posterior", or the "prior" predicted from the steps before; where there
    are none, the prior's action is drawn uniformly.  clear_context: whether the context starts anew with each episode.
    context: what is kept of the past: the "latents" drawn when a frame was seen, or the "frames" themselves, whose
    latents are drawn anew at every step.
    The released code has the prior, frames, and a context that is never cleared (weipu-zhang/STORM, train.py).
    """

    def __init__(
        self,
        world_model: WorldModel,
        agent: ActorCritic,
        *,
        num_envs: int,
        context_length: int,
        latent: Literal["posterior", "prior"] = "posterior",
        clear_context: bool = True,
        context: Literal["latents", "frames"] = "latents",
    ) -> None:
        self.world_model, self.agent = world_model, agent
        self.sees_posterior, self.clear_context = latent == "posterior", clear_context
        self.keeps_frames = context == "frames"
        device = next(world_model.parameters()).device
        shape, dtype = (world_model.obs_shape, torch.uint8) if self.keeps_frames else ((world_model.latent_dim,), None)
        self.past = torch.zeros(num_envs, context_length, *shape, dtype=dtype, device=device)
        self.action = torch.zeros(num_envs, context_length, dtype=torch.long, device=device)
        self.length = np.zeros(num_envs, dtype=np.int64)

    @property
    def context_length(self) -> int:
        return self.action.shape[1]

    @property
    def _past_key(self) -> str:
        return "frames" if self.keeps_frames else "latent"

    @torch.no_grad()
    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        """obs: (N, Y, X, C) uint8.  is_first: (N,) bool.  Returns actions (N,) int64."""
        if self.clear_context:
            self.length[is_first] = 0
        frame = torch.from_numpy(obs).to(self.past.device).permute(0, 3, 1, 2)
        latent = self.world_model.encode(frame)
        hidden = self._hidden()
        if self.sees_posterior:
            action = self.agent.act(latent, hidden, greedy=greedy)
        else:
            predicted = self.world_model.latent.sample(self.world_model.latent.prior(hidden))
            action = self.agent.act(predicted, hidden, greedy=greedy)
            unknown = torch.from_numpy(self.length == 0).to(action.device)
            action = torch.where(unknown, torch.randint_like(action, self.agent.num_actions), action)
        self._remember(frame if self.keeps_frames else latent, action)
        return action.cpu().numpy()

    def _hidden(self) -> Tensor:
        """The sequence model's output after each environment's last token, zeros where there is none.  (N, D)."""
        longest = int(self.length.max())
        if longest == 0:
            return torch.zeros(len(self.length), self.world_model.hidden_dim, device=self.past.device)
        is_first = torch.zeros(len(self.length), longest, dtype=torch.bool, device=self.past.device)
        past = self.past[:, :longest]
        latent = self.world_model.encode(past) if self.keeps_frames else past
        # Rows shorter than the longest are padded after their end, where causality keeps it from mattering.
        hidden = self.world_model.sequence_model(latent, self.action[:, :longest], is_first)
        length = torch.from_numpy(self.length).to(hidden.device)
        last = hidden[torch.arange(len(self.length), device=hidden.device), (length - 1).clamp(min=0)]
        return last.masked_fill((length == 0).unsqueeze(-1), 0.0)

    def _remember(self, seen: Tensor, action: Tensor) -> None:
        for row in np.flatnonzero(self.length == self.context_length):
            self.past[row] = self.past[row].roll(-1, dims=0)
            self.action[row] = self.action[row].roll(-1, dims=0)
        self.length = np.minimum(self.length + 1, self.context_length)
        rows = torch.arange(len(self.length), device=self.past.device)
        newest = torch.from_numpy(self.length - 1).to(self.past.device)
        self.past[rows, newest] = seen
        self.action[rows, newest] = action

    def state_dict(self) -> dict[str, Any]:
        return {
            self._past_key: self.past.cpu().clone(),
            "action": self.action.cpu().clone(),
            "length": self.length.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._past_key not in state:
            raise CheckpointError("player.context is not what the checkpoint's acting context was kept with")
        self.past.copy_(state[self._past_key])
        self.action.copy_(state["action"])
        self.length = np.array(state["length"], dtype=np.int64)

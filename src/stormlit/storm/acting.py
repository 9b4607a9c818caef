"""Acting in real environments with a world model and an agent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from stormlit.data import to_device
from stormlit.errors import MisfitError
from stormlit.nn.compilation import Compiled
from stormlit.ops.spaces import channels_first, clip, random_like
from stormlit.registry import Option
from stormlit.storm.agent import ActorCritic
from stormlit.storm.carried import CarriedMemory
from stormlit.storm.world_model import WorldModel


class Player:
    """Keeps the last steps of N environments and acts on the current frame's latent and the hidden state up to it.

    With memory="carried" it keeps the sequence model's memory of all of an episode in place of steps. A checkpoint
    holds that memory, which cannot be made again: older weights have made it.

    Modules should be in evaluation mode; precision is the caller's autocast.

    num_envs: N.  compile: whether to act with a compiled function.
    latent: where there are no steps before to predict a prior from, the action is drawn uniformly.
    The released code has the prior, frames, and a context that is never cleared (weipu-zhang/STORM, train.py).
    """

    def __init__(
        self,
        world_model: WorldModel,
        agent: ActorCritic,
        num_envs: int,
        compile: bool = False,
        *,
        memory: Annotated[
            Literal["window", "carried"],
            Option("acting reads the last context_length steps anew at every step, or carries a memory along"),
        ] = "window",
        context_length: Annotated[int, Option("past steps the sequence model reads when acting", 1, 10**5)] = 16,
        latent: Annotated[
            Literal["posterior", "prior"],
            Option("the latent that the policy sees: of the current frame, or predicted from the past alone"),
        ] = "posterior",
        clear_context: Annotated[bool, Option("whether an episode's end clears the context")] = True,
        context: Annotated[
            Literal["latents", "frames"],
            Option("past steps as the latents once drawn for them, or as frames, encoded and drawn anew at every step"),
        ] = "latents",
    ) -> None:
        self.world_model, self.agent = world_model, agent
        self.sees_posterior, self.clear_context = latent == "posterior", clear_context
        self.keeps_frames = context == "frames"
        self.context_length = context_length
        device = next(world_model.parameters()).device
        if self.keeps_frames:
            frames = torch.from_numpy(world_model.observation_space.zeros(num_envs, context_length)).to(device)
            self.past = channels_first(world_model.observation_space, frames).contiguous()
        else:
            self.past = torch.zeros(num_envs, context_length, world_model.latent_dim, device=device)
        self.action = torch.from_numpy(agent.action_space.zeros(num_envs, context_length)).to(device)
        self.length = torch.zeros(num_envs, dtype=torch.long, device=device)
        self.carried: CarriedMemory | None = None
        if memory == "carried":
            self.carried = CarriedMemory(world_model.sequence_model, num_envs, context_length, device)
        self._step = Compiled(self._act, "acting", device) if compile else self._act

    @property
    def _past_key(self) -> str:
        return "frames" if self.keeps_frames else "latent"

    @torch.no_grad()
    def act(self, obs: np.ndarray, is_first: np.ndarray, *, greedy: bool = False) -> np.ndarray:
        """obs: (N, *shape) as stored.  is_first: (N,) bool.  Returns actions (N, *shape)."""
        device = self.past.device
        frame, starts = to_device(torch.from_numpy(obs), device), to_device(torch.from_numpy(is_first), device)
        frame = channels_first(self.world_model.observation_space, frame)
        chosen, *moved_on = self._step(frame, starts, greedy)
        kept = [self.past, self.action] if self.carried is None else self.carried.tensors
        torch._foreach_copy_([*kept, self.length], moved_on)
        return chosen.cpu().numpy()

    def _act(self, frame: Tensor, is_first: Tensor, greedy: bool) -> tuple[Tensor, ...]:
        """The actions for frames as batches hold them, (N, ...), and what ``act`` keeps, as it is after them: past and
        actions, or the carried memory, and length.

        Changes nothing and waits for nothing, and all shapes are the same at every step, so that it can be compiled.
        """
        length = self.length.masked_fill(is_first, 0) if self.clear_context else self.length
        latent = self.world_model.sample_posterior(frame)
        if self.carried is None:
            hidden = self._hidden(length)
        else:
            memory, hidden = self.carried.read(length == 0)
        if self.sees_posterior:
            action = self.agent.act(latent, hidden, greedy=greedy)
        else:
            predicted = self.world_model.sample_prior(hidden)
            action = self.agent.act(predicted, hidden, greedy=greedy)
            begins = (length == 0).view(-1, *[1] * (action.ndim - 1))
            action = torch.where(begins, random_like(self.agent.action_space, action), action)
        action = clip(self.agent.action_space, action)
        if self.carried is None:
            newest = frame if self.keeps_frames else latent
            moved_on = [self._appended(self.past, newest, length), self._appended(self.action, action, length)]
        else:
            moved_on = self.carried.moved_on(memory, latent, self.world_model.encode_action(action))
        return action, *moved_on, (length + 1).clamp(max=self.context_length)

    def _hidden(self, length: Tensor) -> Tensor:
        """The sequence model's output after each environment's last token, zeros where there is none.  (N, D)."""
        latent = self.world_model.sample_posterior(self.past) if self.keeps_frames else self.past
        # What lies behind a row's last token is not of this episode; causality keeps it from mattering.
        is_first = torch.zeros(self.action.shape[:2], dtype=torch.bool, device=self.action.device)
        hidden = self.world_model.sequence_model(latent, self.world_model.encode_action(self.action), is_first)
        last = (length - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return hidden.gather(1, last).squeeze(1).masked_fill((length == 0).unsqueeze(-1), 0.0)

    def _appended(self, past: Tensor, newest: Tensor, length: Tensor) -> Tensor:
        """The past (N, context, ...) with ``newest`` (N, ...) behind it; what is too long ago makes room."""
        steps = torch.arange(self.context_length, device=past.device)
        shape = (len(length), self.context_length, *[1] * (past.ndim - 2))
        full = (length == self.context_length).view(-1, *[1] * (past.ndim - 1))
        here = (steps == length.clamp(max=self.context_length - 1).unsqueeze(1)).view(shape)
        return torch.where(here, newest.unsqueeze(1), torch.where(full, past.roll(-1, dims=1), past))

    def state_dict(self) -> dict[str, Any]:
        if self.carried is not None:
            carried = [tensor.cpu().clone() for tensor in self.carried.tensors]
            return {"carried": carried, "length": self.length.tolist()}
        return {
            self._past_key: self.past.cpu().clone(),
            "action": self.action.cpu().clone(),
            "length": self.length.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if ("carried" in state) != (self.carried is not None):
            raise MisfitError("player.memory is not what the checkpoint's acting context was kept with")
        if self.carried is not None:
            for mine, saved in zip(self.carried.tensors, state["carried"], strict=True):
                mine.copy_(saved)
        elif self._past_key not in state:
            raise MisfitError("player.context is not what the checkpoint's acting context was kept with")
        else:
            self.past.copy_(state[self._past_key])
            self.action.copy_(state["action"])
        self.length.copy_(torch.tensor(state["length"]))

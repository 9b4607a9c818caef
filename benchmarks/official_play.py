"""The acting half of ``against_official.py``: environment streams and acting, stormlit beside a clone."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from stormlit.config.compose import compose
from stormlit.envs import VectorEnv
from stormlit.storm.acting import Player
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel


def their_modules(
    official: Any, arguments: Any, width: int, actions: int, device: torch.device, bf16: bool
) -> tuple[Any, Any]:
    """The clone's world model and agent.  arguments: ``layers`` and ``heads``."""
    model = official.world_models.WorldModel(3, actions, 64, width, arguments.layers, arguments.heads)
    features = model.stoch_flattened_dim + width
    agent = official.agents.ActorCriticAgent(features, 2, width, actions, 0.985, 0.95, 3e-4)
    for module in (model, agent):
        module.use_amp, module.tensor_dtype = bf16, torch.bfloat16 if bf16 else torch.float32
        module.scaler = torch.amp.GradScaler(device.type, enabled=bf16 and device.type == "cuda")
        module.to(device)
    return model, agent


def compare_stream(official_train: Any, game: str, *, seed: int = 3, num_envs: int = 2, episodes: int = 4) -> list[int]:
    """Play the same random actions in the clone's environments and ours until so many episodes have ended.

    The clone's vector of environments was written for Gymnasium 0.29, which resets one in the step that ends it.
    Returns steps, episodes, lost lives, and the numbers of frames, rewards, terminations and ends that differ.
    """
    ours = VectorEnv(compose(["official"], [f"env.game={game}", f"env.num_envs={num_envs}"]).env, seed=seed)
    theirs = gymnasium.vector.SyncVectorEnv(
        [lambda: official_train.build_single_env(f"ALE/{game}-v5", (64, 64), seed)] * num_envs,
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )
    random = np.random.default_rng(seed)
    frames = int((ours.reset() != theirs.reset()[0]).any(axis=(1, 2, 3)).sum())
    steps = ended = lost = rewards = terminations = ends = 0
    while ended < episodes:
        actions = random.integers(ours.num_actions, size=num_envs)
        step = ours.step(actions)
        frame, reward, done, truncated, info = theirs.step(actions)
        steps += num_envs
        ended += len(step.episodes)
        lost += int((step.terminated & ~step.is_first).sum())
        frames += int((step.obs != frame).any(axis=(1, 2, 3)).sum())
        rewards += int((step.reward != reward.astype(np.float32)).sum())
        terminations += int((step.terminated != np.logical_or(done, info["life_loss"])).sum())
        ends += int((step.is_first != np.logical_or(done, truncated)).sum())
    ours.close(), theirs.close()
    return [steps, ended, lost, frames, rewards, terminations, ends]


def print_streams(official_train: Any, games: list[str]) -> None:
    print("\n| game | steps | episodes | lost lives | frames | rewards | terminations | ends |")
    print("|---" * 8 + "|")
    for game in games:
        print(f"| {game} | {' | '.join(f'{number:,}' for number in compare_stream(official_train, game))} |")


class _Forced:
    """Draws of latents that depend on the step, the environment and the place in the context alone.

    Both sides then draw the same, though theirs encodes the frames there are and ours always a whole context.
    """

    step = 0

    def __init__(self, num_envs: int, context: int) -> None:
        self.num_envs, self.context = num_envs, context

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: (N, L, G, K), (N * context, G, K) or (N, G, K), normalised or not.  Returns one-hot groups."""
        random = torch.Generator().manual_seed(self.step)
        shape = (self.num_envs, self.context, *logits.shape[-2:])
        uniform = torch.rand(shape, generator=random).to(logits.device)
        if logits.ndim == 4:
            uniform = uniform[:, : logits.shape[1]]
        else:
            uniform = uniform.flatten(0, 1) if len(logits) == self.num_envs * self.context else uniform[:, 0]
        gumbel = -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()
        return nn.functional.one_hot((logits.float() + gumbel).argmax(-1), logits.shape[-1]).float()


@torch.no_grad()
def acting(
    their_model: Any, their_agent: Any, model: WorldModel, agent: ActorCritic, steps: int = 40
) -> dict[str, tuple[Tensor, Tensor]]:
    """Hidden states, predicted latents and policies of 2 environments, theirs and ours, across an episode's end.

    Frames are random. The clone is given what its training loop gives it, the last 16 frames and the actions taken at
    them, which are ours here; the first action, which is drawn without a look at anything, is left out.
    """
    options = compose(["official"]).player
    draw, seen = _Forced(2, options.context_length), []
    their_model.stright_throught_gradient = lambda logits, sample_mode="": draw(logits)
    model.latent.sample = lambda log_probs: draw(log_probs).flatten(-2)
    act = agent.act

    def noted(latent: Tensor, hidden: Tensor, *, greedy: bool = False) -> Tensor:
        seen.append((hidden, latent, agent.policy(latent, hidden)))
        return act(latent, hidden, greedy=greedy)

    agent.act = noted  # type: ignore[method-assign]
    player = Player(model.eval(), agent.eval(), num_envs=2, **vars(options))
    their_model.eval(), their_agent.eval()
    device = player.past.device
    frames = np.random.default_rng(0).integers(256, size=(steps, 2, 64, 64, 3), dtype=np.uint8)
    past_frames: deque[Tensor] = deque(maxlen=16)
    past_actions: deque[Tensor] = deque(maxlen=16)
    theirs = []
    for step, frame in enumerate(frames):
        draw.step = step
        action = player.act(frame, np.array([step == 0, step in (0, steps // 2)]))
        if past_actions:
            latent = their_model.encode_obs(torch.stack(list(past_frames), dim=1))
            predicted, hidden = their_model.calc_last_dist_feat(latent, torch.stack(list(past_actions), dim=1).float())
            policy = their_agent.policy(torch.cat([predicted, hidden], dim=-1)).log_softmax(-1)
            theirs.append([part.squeeze(1) for part in (hidden, predicted, policy)])
        past_frames.append(torch.from_numpy(frame).to(device).permute(0, 3, 1, 2).float() / 255)
        past_actions.append(torch.from_numpy(action).to(device))
    names = ("acting hidden states", "acting latents", "acting policy")
    columns = zip(names, zip(*theirs, strict=True), zip(*seen[1:], strict=True), strict=True)
    return {name: (torch.stack(list(one)), torch.stack(list(two))) for name, one, two in columns}

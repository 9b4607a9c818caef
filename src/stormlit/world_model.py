"""The stochastic Transformer world model: encoder, latent, sequence model, decoder, reward and continuation heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from stormlit.nn.heads import TwoHot
from stormlit.ops.categorical import entropy
from stormlit.ops.kl import kl_balance, masked_mean
from stormlit.optimizers import OptimizerSettings, adam
from stormlit.registry import build
from stormlit.types import Batch, Losses, PartNode, WorldState


class WorldModel(L.LightningModule):
    """Learns to compress frames and to predict what follows an action (STORM section 3.1, equations 1 to 5).

    obs_shape: (C, Y, X).  num_actions: A.  hidden_dim: D, width of the sequence model and of the heads.
    encoder ... continuation_head: component nodes ``{name, **options}``.
    loss_scales: weight of each term: reconstruction, reward, continuation, dyn, rep.
    free_bits, free_bits_clip: nats of KL that go unpunished, see ``kl_balance``.
    reward_bins, reward_low, reward_high: of the reward's symlog two-hot encoding.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        *,
        hidden_dim: int,
        encoder: PartNode,
        decoder: PartNode,
        latent: PartNode,
        sequence_model: PartNode,
        reward_head: PartNode,
        continuation_head: PartNode,
        loss_scales: Mapping[str, float],
        free_bits: float,
        free_bits_clip: Literal["step", "mean"],
        reward_bins: int,
        reward_low: float,
        reward_high: float,
        optimizer: OptimizerSettings,
    ) -> None:
        super().__init__()
        self.obs_shape, self.num_actions, self.hidden_dim = obs_shape, num_actions, hidden_dim
        self.loss_scales, self.optimizer_settings = dict(loss_scales), optimizer
        self.free_bits, self.free_bits_clip = free_bits, free_bits_clip
        self.encoder = build("encoder", encoder, obs_shape, key="world_model.encoder")
        self.latent = build("latent", latent, self.encoder.embed_dim, hidden_dim, key="world_model.latent")
        self.latent_dim: int = self.latent.latent_dim
        self.sequence_model = build(
            "sequence_model",
            sequence_model,
            self.latent_dim,
            num_actions,
            hidden_dim,
            key="world_model.sequence_model",
        )
        self.decoder = build("decoder", decoder, self.latent_dim, obs_shape, key="world_model.decoder")
        self.reward_head = build(
            "head", reward_head, hidden_dim, reward_bins, hidden_dim, key="world_model.reward_head"
        )
        self.continuation_head = build(
            "head", continuation_head, hidden_dim, 1, hidden_dim, key="world_model.continuation_head"
        )
        self.reward_encoding = TwoHot(reward_bins, reward_low, reward_high)

    def posterior(self, obs: Tensor) -> Tensor:
        """Distribution of the latents of frames.  obs: (..., C, Y, X) uint8.  Returns (..., G, K) float32."""
        return self._posterior(normalize_pixels(obs))

    def encode(self, obs: Tensor) -> Tensor:
        """Sampled latents of frames.  obs: (..., C, Y, X) uint8.  Returns (..., Z) float32."""
        return self.latent.sample(self.posterior(obs))

    def decode(self, latent: Tensor) -> Tensor:
        """Frames of latents.  latent: (..., Z).  Returns (..., C, Y, X), about [0, 1], not clipped."""
        return self.decoder(latent.flatten(0, -2)).unflatten(0, latent.shape[:-1])

    def reward(self, hidden: Tensor) -> Tensor:
        """Expected reward of the action that led to ``hidden``.  hidden: (..., D).  Returns (...,) float32."""
        return self.reward_encoding.decode(self.reward_head(hidden))

    def continuation(self, hidden: Tensor) -> Tensor:
        """Probability that the episode goes on.  hidden: (..., D).  Returns (...,) float32 in [0, 1]."""
        return torch.sigmoid(self.continuation_head(hidden).squeeze(-1).float())

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Losses:  # type: ignore[override]
        """The loss of equation 3 on B windows of T steps, as terms and scales."""
        obs = normalize_pixels(batch.obs)
        posterior = self._posterior(obs)
        latent = self.latent.sample(posterior)
        hidden = self.sequence_model(latent, batch.action, batch.is_first)
        prior = self.latent.prior(hidden)

        error = (self.decode(latent).float() - obs).square().sum(dim=(-3, -2, -1))
        reward = self.reward_encoding.loss(self.reward_head(hidden), batch.reward)
        continuation = F.binary_cross_entropy_with_logits(
            self.continuation_head(hidden).squeeze(-1).float(), (~batch.terminated).float()
        )
        # h_t predicts z_{t+1}, except across an episode's end, where the next frame has nothing to do with the action.
        follows = ~batch.is_first[:, 1:]
        dyn, rep, kl = kl_balance(posterior[:, 1:], prior[:, :-1], follows, self.free_bits, self.free_bits_clip)
        with torch.no_grad():
            metrics = {
                "kl": kl,
                "posterior_entropy": entropy(posterior).sum(dim=-1).mean(),
                "prior_entropy": masked_mean(entropy(prior[:, :-1]).sum(dim=-1), follows),
            }
        terms = {
            "reconstruction": error.mean(),
            "reward": reward.mean(),
            "continuation": continuation,
            "dyn": dyn,
            "rep": rep,
        }
        return Losses(terms, self.loss_scales, metrics)

    def _posterior(self, obs: Tensor) -> Tensor:
        """obs: (..., C, Y, X) float in [0, 1].  Returns (..., G, K)."""
        embed = self.encoder(obs.flatten(0, -4))
        return self.latent.posterior(embed.unflatten(0, obs.shape[:-3]))

    def begin(self, context: Batch, capacity: int, *, from_posterior: bool) -> WorldState:
        """Read C steps of real experience and stand where imagination starts.

        context: (N, C, ...).  capacity: tokens the memory must hold in all, at least C + the steps to come.
        from_posterior: stand at the last frame itself, before its action; otherwise one step after it, at a latent
        drawn from the prior (the paper's way).
        """
        latent = self.encode(context.obs)
        if not from_posterior:
            hidden, memory = self.sequence_model.prefill(latent, context.action, context.is_first, capacity)
            return WorldState(self.latent.sample(self.latent.prior(hidden[:, -1])), hidden[:, -1], memory)
        if latent.shape[1] == 1:
            memory = self.sequence_model.empty(latent.shape[0], capacity)
            return WorldState(latent[:, -1], latent.new_zeros(latent.shape[0], self.hidden_dim), memory)
        hidden, memory = self.sequence_model.prefill(
            latent[:, :-1], context.action[:, :-1], context.is_first[:, :-1], capacity
        )
        starts = context.is_first[:, -1]
        memory.cut(starts)
        return WorldState(latent[:, -1], hidden[:, -1].masked_fill(starts.unsqueeze(-1), 0.0), memory)

    def step(self, state: WorldState, action: Tensor) -> WorldState:
        """Imagine one step.  action: (N,) int64.  The memory is advanced in place and carried over."""
        hidden = self.sequence_model.step(state.latent, action, state.memory)
        return WorldState(self.latent.sample(self.latent.prior(hidden)), hidden, state.memory)

    def configure_optimizers(self, fused: bool = True) -> torch.optim.Adam:
        return adam(self.parameters(), self.optimizer_settings, fused=fused)


def normalize_pixels(obs: Tensor) -> Tensor:
    """uint8 frames to float32 in [0, 1], of the same shape.

    On the CPU the channels are moved first: with the channels last, which is how frames are stored, PyTorch's BatchNorm
    sums in plain float32 there, and its statistics are off by 1e-4 for large batches.
    """
    scaled = obs.float().div_(255.0)
    return scaled if scaled.is_cuda else scaled.contiguous()


def pixels(obs_hat: Tensor) -> Tensor:
    """Decoded frames in about [0, 1] to uint8 of the same shape."""
    return obs_hat.float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)

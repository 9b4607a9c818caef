"""The stochastic Transformer world model: encoder, latent, sequence model, decoder, reward and continuation heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.data import Batch, Losses, PartNode, Reading, WorldState
from stormlit.nn.building import build_part
from stormlit.nn.heads import READINGS, HiddenState, LatentAndHiddenState, LatentState, Scoring
from stormlit.nn.optimizers import OptimizerSettings
from stormlit.nn.sequence.tokens import build_merged, build_separate
from stormlit.ops.losses import kl_balance
from stormlit.ops.spaces import encode, read
from stormlit.registry import Option
from stormlit.spaces import ActionSpace, ObservationSpace, Seen
from stormlit.storm.loss_balance import Harmony
from stormlit.storm.observer import build_decoders, build_encoders, decode, embed, reconstruction_losses

FRAMES_AT_ONCE = 128
TOKENS: Mapping[str, Callable[..., Any]] = {"merged": build_merged, "separate": build_separate}
DECODER_INPUTS = {"latent": LatentState, "hidden": HiddenState, "both": LatentAndHiddenState}


@dataclass
class WorldModelLossScales:
    """Weights of the terms of equation 3."""

    reconstruction: Annotated[float, Option("weight of the image's reconstruction error")] = 1.0
    vector_reconstruction: Annotated[
        float, Option("weight of the vectors' reconstruction error, squared in symlog and summed")
    ] = 1.0
    reward: Annotated[float, Option("weight of the reward's cross-entropy")] = 1.0
    continuation: Annotated[float, Option("weight of the continuation's cross-entropy")] = 1.0
    dyn: Annotated[float, Option("weight of the KL that moves the prior (beta_1)")] = 0.5
    rep: Annotated[float, Option("weight of the KL that moves the posterior (beta_2)")] = 0.1


@dataclass
class WorldModelOptions:
    """What can be chosen of a world model; the defaults are the paper's."""

    hidden_dim: Annotated[int, Option("width of the sequence model and of the heads", 1, 10**5)] = 512
    encoder: Annotated[PartNode, Option("what turns an image into features", part="encoder")] = "cnn"
    decoder: Annotated[PartNode, Option("what turns a latent into an image", part="decoder")] = "cnn"
    vector_encoder: Annotated[PartNode, Option("what turns vectors into features", part="vector_encoder")] = "mlp"
    vector_decoder: Annotated[PartNode, Option("what turns a latent into vectors", part="vector_decoder")] = "mlp"
    latent: Annotated[PartNode, Option("what a frame is compressed into", part="latent")] = "categorical"
    sequence_model: Annotated[PartNode, Option("what reads latents and actions in order", part="sequence_model")] = (
        "transformer"
    )
    reward_head: Annotated[PartNode, Option("what predicts the reward", part="head")] = "mlp"
    continuation_head: Annotated[PartNode, Option("what predicts whether the episode goes on", part="head")] = "mlp"
    decoder_input: Annotated[
        Literal["latent", "hidden", "both"],
        Option("what the decoder reads: the frame's latent (the paper), the memory before the frame, or both"),
    ] = "latent"
    tokens: Annotated[
        Literal["merged", "separate"],
        Option("whether a step is one token (the paper), or its latent and its action are one each"),
    ] = "merged"
    objectives: Annotated[list[Any], Option("parts that add terms to the loss", part="objective")] = field(
        default_factory=list
    )
    loss_scales: Annotated[Mapping[str, float], Option(group=WorldModelLossScales)] = field(default_factory=dict)
    loss_balance: Annotated[
        Literal["fixed", "harmony"],
        Option("loss_scales alone, or also learned weights of reconstruction, reward and KL (HarmonyDream)"),
    ] = "fixed"
    reconstruction_focus: Annotated[
        float,
        Option("share of the reconstruction's weight that goes to pixels far from the batch's mean frame", 0, 1),
    ] = 0.0
    free_bits: Annotated[float, Option("nats of KL a step that are not punished", 0, 1e12)] = 1.0
    free_bits_clip: Annotated[
        Literal["step", "mean"], Option("whether they are granted to each step or to the mean over the batch")
    ] = "step"
    reward_loss: Annotated[
        Scoring,
        Option("two symlog bins or a normal over them, two bins of the numbers themselves, or squared error in symlog"),
    ] = "twohot"
    reward_bins: Annotated[int, Option("symlog bins of the reward, for twohot and hl_gauss", 3, 10**5)] = 255
    reward_low: Annotated[float, Option("symlog of the lowest bin", below="reward_high")] = -20.0
    reward_high: Annotated[float, Option("symlog of the highest bin")] = 20.0
    optimizer: Annotated[Mapping[str, float], Option(group=OptimizerSettings)] = field(default_factory=dict)


class WorldModel(nn.Module):
    """Learns to compress frames and to predict what follows an action (STORM section 3.1, equations 1 to 5).

    observations: what is seen; (Y, X, C) is short for an image.  actions: what can be done; a number is short for as
    many discrete actions.  options: those of ``WorldModelOptions``; hidden_dim is D.
    A frame is one observation, of an image, vectors or both: as batches hold it, (..., C, Y, X) uint8 of an image,
    (..., *shape) of any other ``ObservationSpace``. What it lacks has no encoder and no decoder, which are None.
    """

    Options = WorldModelOptions

    def __init__(
        self, observations: ObservationSpace | tuple[int, int, int], actions: ActionSpace | int, **options: Any
    ) -> None:
        super().__init__()
        chosen = WorldModelOptions(**options)
        hidden_dim = chosen.hidden_dim
        observations = ObservationSpace.of(observations)
        self.observation_space, self.action_space = observations, ActionSpace.of(actions)
        self.obs_axes, self.hidden_dim = len(observations.shape), hidden_dim
        self.loss_scales = asdict(WorldModelLossScales(**chosen.loss_scales))
        self.reconstruction_focus = chosen.reconstruction_focus
        self.optimizer_settings = OptimizerSettings(**chosen.optimizer)
        self.free_bits, self.free_bits_clip = chosen.free_bits, chosen.free_bits_clip
        self.reports_windows = False  # whether the loss of each window is told too, see ``Losses``
        encoders = build_encoders(observations, chosen.encoder, chosen.vector_encoder)
        self.encoder, self.vector_encoder, self.embed_dim = encoders
        self.latent = build_part("latent", chosen.latent, self.embed_dim, hidden_dim, key="world_model.latent")
        self.latent_dim: int = self.latent.latent_dim
        self.sequence_model = TOKENS[chosen.tokens](
            chosen.sequence_model, self.latent_dim, self.action_space, hidden_dim, key="world_model.sequence_model"
        )
        self.decoder_reads_hidden = chosen.decoder_input != "latent"
        self.decoder_input = DECODER_INPUTS[chosen.decoder_input](self.latent_dim, hidden_dim)
        width: int = self.decoder_input.state_dim  # type: ignore[assignment]
        self.decoder, self.vector_decoder = build_decoders(observations, width, chosen.decoder, chosen.vector_decoder)
        self.reward_encoding = READINGS[chosen.reward_loss](chosen.reward_bins, chosen.reward_low, chosen.reward_high)
        outputs = self.reward_encoding.outputs, hidden_dim
        self.reward_head = build_part("head", chosen.reward_head, hidden_dim, *outputs, key="world_model.reward_head")
        self.continuation_head = build_part(
            "head",
            chosen.continuation_head,
            hidden_dim,
            1,
            hidden_dim,
            key="world_model.continuation_head",
        )
        self.objectives = self._build_objectives(chosen.objectives)
        self.harmony = Harmony() if chosen.loss_balance == "harmony" else None

    def _build_objectives(self, nodes: Sequence[PartNode]) -> nn.ModuleList:
        widths = self.latent_dim, self.embed_dim, self.hidden_dim, self.action_space.width
        spaces = {"observations": self.observation_space, "actions": self.action_space}
        return nn.ModuleList(
            build_part("objective", node, *widths, key=f"world_model.objectives[{index}]", **spaces)
            for index, node in enumerate(nodes)
        )

    def posterior(self, obs: Tensor) -> Tensor:
        """Distribution of the latents of frames, as the latent writes it."""
        return self.latent.posterior(embed(read(self.observation_space, obs), self.encoder, self.vector_encoder))

    @torch.no_grad()
    def sample_posterior(self, obs: Tensor) -> Tensor:
        """Sampled latents of frames, in evaluation mode.  Returns (..., Z) float32."""
        frames = obs.flatten(0, -self.obs_axes - 1)
        # A CPU is fastest while a chunk's feature maps stay in its cache.
        chunks = frames.split(len(frames) if frames.is_cuda else FRAMES_AT_ONCE)
        drawn = torch.cat([self.latent.sample(self.posterior(chunk)) for chunk in chunks])
        return drawn.unflatten(0, obs.shape[: -self.obs_axes])

    @torch.no_grad()
    def sample_prior(self, hidden: Tensor) -> Tensor:
        """Sampled latents of the frames to come.  hidden: (..., D).  Returns (..., Z) float32."""
        return self.latent.sample(self.latent.prior(hidden))

    def encode_action(self, action: Tensor) -> Tensor:
        """Actions (..., *shape) as the sequence model reads them: discrete ones as they are, others as vectors, see
        ``ops.spaces.encode``.
        """
        return action if self.action_space.kind == "discrete" else encode(self.action_space, action)

    def decode(self, latent: Tensor, before: Tensor | None = None) -> Seen:
        """Images of latents, (..., C, Y, X), about [0, 1], not clipped, and vectors (..., V) in symlog.

        latent: (..., Z).  before: (..., D), for decoders that read the hidden state before each frame, see
        ``hidden_before``.
        """
        return decode(self.decoder_input(latent, before), self.decoder, self.vector_decoder)

    def reward(self, hidden: Tensor) -> Tensor:
        """Expected reward of the action that led to ``hidden``.  hidden: (..., D).  Returns (...,) float32."""
        return self.reward_encoding.decode(self.reward_head(hidden))

    def continuation(self, hidden: Tensor) -> Tensor:
        """Probability that the episode goes on.  hidden: (..., D).  Returns (...,) float32 in [0, 1]."""
        return torch.sigmoid(self.continuation_head(hidden).squeeze(-1).float())

    def losses(self, batch: Batch) -> Losses:
        """The loss of equation 3 on B windows of T steps, as terms and scales."""
        seen = read(self.observation_space, batch.obs)
        embedded = embed(seen, self.encoder, self.vector_encoder)
        posterior = self.latent.posterior(embedded)
        latent = self.latent.sample(posterior)
        hidden = self.sequence_model(latent, self.encode_action(batch.action), batch.is_first)
        prior = self.latent.prior(hidden)

        if self.decoder_reads_hidden:  # what came before a window's first step is not known
            before = hidden_before(hidden, batch.is_first)
            seen, decoded = seen.after_first(), self.decode(latent[:, 1:], before[:, 1:])
        else:
            decoded = self.decode(latent)
        reconstruction = reconstruction_losses(decoded, seen, self.reconstruction_focus)
        reward = self.reward_encoding.loss(self.reward_head(hidden), batch.reward)
        going_on, goes_on = self.continuation_head(hidden).squeeze(-1).float(), (~batch.terminated).float()
        continuation = F.binary_cross_entropy_with_logits(going_on, goes_on)
        # h_t predicts z_{t+1}, except across an episode's end, where the next frame has nothing to do with the action.
        follows = ~batch.is_first[:, 1:]
        dyn, rep, kl = kl_balance(
            self.latent.divergence, posterior[:, 1:], prior[:, :-1], follows, self.free_bits, self.free_bits_clip
        )
        with torch.no_grad():
            entropy = self.latent.entropy(torch.stack([posterior, prior]))
            metrics = {"kl": kl, "posterior_entropy": entropy[0].mean(), "prior_entropy": entropy[1].mean()}
        terms = {
            **reconstruction,
            "reward": reward.mean(),
            "continuation": continuation,
            "dyn": dyn,
            "rep": rep,
        }
        losses = Losses(terms, {name: self.loss_scales[name] for name in terms}, metrics)
        if self.harmony is not None:
            losses = self.harmony(losses)
        if hasattr(self.latent, "auxiliary"):
            losses = losses.added(self.latent.auxiliary(posterior))
        reading = Reading(batch, embedded, posterior, latent, hidden, prior)
        for objective in self.objectives:
            losses = losses.added(objective(reading))
        if self.reports_windows:
            ends = F.binary_cross_entropy_with_logits(going_on, goes_on, reduction="none")
            losses.windows = self._surprise(posterior[:, 1:], prior[:, :-1], follows, reward + ends)
        return losses

    @torch.no_grad()
    def _surprise(self, posterior: Tensor, prior: Tensor, follows: Tensor, errors: Tensor) -> Tensor:
        """What was not predicted of each window: KL, and the errors (B, T) of reward and continuation, in nats a step.

        Reconstructions are left out: a frame that is hard to draw is not one that was hard to foresee. (B,) float32.
        """
        nats = self.latent.divergence(posterior, prior) * follows
        return nats.sum(1) / follows.sum(1).clamp(min=1) + errors.float().mean(1)

    def start_imagination(self, context: Batch, capacity: int, *, from_posterior: bool) -> WorldState:
        """Read C steps of real experience and stand where imagination starts.

        context: (N, C, ...).  capacity: tokens the memory must hold in all, at least C + the steps to come.
        from_posterior: stand at the last frame itself, before its action; otherwise one step after it, at a latent
        drawn from the prior (the paper's way).
        """
        latent, action = self.sample_posterior(context.obs), self.encode_action(context.action)
        if not from_posterior:
            hidden, memory = self.sequence_model.prefill(latent, action, context.is_first, capacity)
            return WorldState(self.sample_prior(hidden[:, -1]), hidden[:, -1], memory)
        rows, length = context.reward.shape
        if length == 1:
            memory = self.sequence_model.empty(rows, capacity)
            return WorldState(latent[:, -1], torch.zeros(rows, self.hidden_dim, device=context.obs.device), memory)
        hidden, memory = self.sequence_model.prefill(latent[:, :-1], action[:, :-1], context.is_first[:, :-1], capacity)
        starts = context.is_first[:, -1]
        memory.cut(starts)
        return WorldState(latent[:, -1], hidden[:, -1].masked_fill(starts.unsqueeze(-1), 0.0), memory)

    def step(self, state: WorldState, action: Tensor) -> WorldState:
        """Imagine one step.  action: (N, *shape).  The memory is advanced in place and carried over."""
        hidden = self.sequence_model.step(state.latent, self.encode_action(action), state.memory)
        return WorldState(self.latent.sample(self.latent.prior(hidden)), hidden, state.memory)


def hidden_before(hidden: Tensor, is_first: Tensor) -> Tensor:
    """The hidden state before each step's frame: that of the step before, zeros where nothing of the episode is known.

    hidden: (B, T, D).  is_first: (B, T) bool.  Returns (B, T, D).
    """
    return F.pad(hidden[:, :-1], (0, 0, 1, 0)).masked_fill(is_first.unsqueeze(-1), 0.0)

"""What a part of each kind has to offer. ``stormlit.check_part`` holds every part to this."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from stormlit.data import Losses, Reading
from stormlit.spaces import Kind


class Encoder(Protocol):
    """Built as ``Encoder(obs_shape, **options)`` with obs_shape (C, Y, X)."""

    embed_dim: int

    def __call__(self, obs: Tensor) -> Tensor:
        """obs: (M, C, Y, X) float in [0, 1].  Returns (M, E)."""
        ...


class Decoder(Protocol):
    """Built as ``Decoder(latent_dim, obs_shape, **options)``."""

    def __call__(self, latent: Tensor) -> Tensor:
        """latent: (M, Z).  Returns (M, C, Y, X), on the scale of the observations in [0, 1], not clipped."""
        ...


class VectorEncoder(Protocol):
    """Built as ``VectorEncoder(vector_dim, **options)``: reads what is not an image, all of it as one vector."""

    embed_dim: int

    def __call__(self, vector: Tensor) -> Tensor:
        """vector: (M, V) float32, in symlog.  Returns (M, E)."""
        ...


class VectorDecoder(Protocol):
    """Built as ``VectorDecoder(latent_dim, vector_dim, **options)``."""

    def __call__(self, latent: Tensor) -> Tensor:
        """latent: (M, Z).  Returns (M, V), in symlog."""
        ...


class Latent(Protocol):
    """Built as ``Latent(embed_dim, hidden_dim, **options)``.

    A distribution is one float32 tensor: its leading axes are those of what it was made from, its trailing axes mean
    what the latent says (logits, means and deviations, ...). Nobody but the latent reads it; others index its leading
    axes and detach it.

    Optional: ``auxiliary(posterior)`` returns ``Losses`` (see ``types``): named terms with scales that are added to
    the world model's loss, and metrics such as how many codes are in use.
    """

    latent_dim: int

    def posterior(self, embed: Tensor) -> Tensor:
        """embed: (..., E).  Returns the distribution of z given the frame, float32."""
        ...

    def prior(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D).  Returns the distribution of the next z given the past, of the posterior's shape."""
        ...

    def sample(self, distribution: Tensor) -> Tensor:
        """Returns a sample (..., Z) float32, through which gradients reach the posterior's embedding."""
        ...

    def entropy(self, distribution: Tensor) -> Tensor:
        """Returns nats over the leading axes, float32."""
        ...

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """How far a posterior is from a prior: the KL divergence, or what stands for it.

        Returns nats over the leading axes, float32: at least 0, and 0 if both are the same. Gradients must reach the
        prior. KL balance and free bits are the world model's.
        """
        ...


class Memory(Protocol):
    """What a sequence model remembers of N trajectories while stepping."""

    def cut(self, where: Tensor) -> None:
        """Forget everything seen so far in the rows where ``where`` (N,) bool is True."""
        ...


class SequenceModel(Protocol):
    """Built as ``SequenceModel(latent_dim, num_actions, hidden_dim, **options)``.

    Actions come as their numbers, (...,) int64, if they are discrete, and as vectors, (..., A) float32, if they are not
    (see ``ops.spaces.encode``); ``num_actions`` is A. A model for discrete actions alone need not take vectors.
    ``hidden[:, t]`` depends on tokens 0 to t alone, and on none before the last episode start at or before t.

    Optional: a model that says ``carries = True`` can be acted with on one memory for ever (``player.memory=carried``).
    It steps on when as many tokens as the memory's capacity have gone by, and may then forget the oldest; all that its
    memory holds are the tensors that the method ``tensors()`` returns, whose number, shapes and dtypes never change.
    """

    hidden_dim: int
    # The longest window in steps, None for any.
    max_length: int | None

    def __call__(self, latent: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """latent: (B, T, Z).  action: (B, T) or (B, T, A).  is_first: (B, T) bool.  Returns hidden (B, T, D)."""
        ...

    def prefill(self, latent: Tensor, action: Tensor, is_first: Tensor, capacity: int) -> tuple[Tensor, Memory]:
        """The same pass, keeping a memory with room for ``capacity`` tokens in all.  Returns hidden and the memory."""
        ...

    def empty(self, rows: int, capacity: int) -> Memory:
        """A memory of ``rows`` trajectories that have not begun, with room for ``capacity`` tokens."""
        ...

    def step(self, latent: Tensor, action: Tensor, memory: Memory) -> Tensor:
        """One more token, in place of a full pass.  latent: (N, Z).  action: (N,) or (N, A).  Returns hidden (N, D).

        Unless the model carries, a token for which the memory has no room, or that is beyond ``max_length``, raises.
        """
        ...


class Head(Protocol):
    """Built as ``Head(in_dim, out_dim, hidden_dim, **options)``: reward, continuation, policy and value."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., in_dim).  Returns (..., out_dim), whatever the leading axes."""
        ...


class AgentState(Protocol):
    """Built as ``AgentState(latent_dim, hidden_dim, **options)``: what policy and critic see."""

    state_dim: int

    def __call__(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """latent: (..., Z).  hidden: (..., D).  Returns (..., F), F being ``state_dim``."""
        ...


class Objective(Protocol):
    """Built as ``Objective(latent_dim, embed_dim, hidden_dim, num_actions, **options)``: adds to the loss.

    The terms' names are those in the logs, ``world_model/loss/NAME``: no other term or metric may have them.
    """

    def __call__(self, reading: Reading) -> Losses:
        """Returns named terms, float32 scalars, with a scale each, and detached metrics. Changes nothing it sees."""
        ...


class Sampler(Protocol):
    """Built as ``Sampler(**options)``: which windows of the replay buffer the world model learns from.

    It keeps nothing: how often each window was drawn, and with what loss, is kept and saved for it. A window is known
    by its first step. Its loss is what was predicted badly: see ``WorldModel.losses``.
    """

    # Whether it reads losses, which then come back from every update.
    needs_losses: bool

    def __call__(self, uses: Tensor, loss: Tensor) -> Tensor:
        """uses: (W,) float32, how often each of the W windows was drawn.  loss: (W,) float32, the last one, infinite
        where a window was never drawn.  Returns weights (W,) float32, to which the probabilities are in proportion.
        """
        ...


class Policy(Protocol):
    """Built as ``Policy(action_space, **options)``: how the actor's output is read as a distribution over actions.

    A distribution is one tensor of whatever a policy makes of the output. Actions have the shape and dtype they are
    stored with; those of a Box may be drawn outside [-1, 1], and are scored as drawn and clipped elsewhere.
    """

    # The kinds of action spaces it is for; any other is refused before it is built.
    fits: ClassVar[tuple[Kind, ...]]
    # How many numbers it reads from the actor.
    out_dim: int

    def __call__(self, output: Tensor) -> Tensor:
        """output: (..., out_dim) of the actor, in any float dtype.  Returns the distribution, (..., P) float32."""
        ...

    def log_prob(self, distribution: Tensor, action: Tensor) -> Tensor:
        """distribution: (..., P).  action: (..., *shape).  Returns (...,) float32, summed over an action's parts."""
        ...

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., P).  Returns nats (...,) float32, summed over an action's parts."""
        ...

    def mode(self, distribution: Tensor) -> Tensor:
        """distribution: (..., P).  Returns the most likely action, (..., *shape)."""
        ...

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., P).  Returns a drawn action, (..., *shape)."""
        ...


INTERFACES: dict[str, type] = {
    "encoder": Encoder,
    "decoder": Decoder,
    "vector_encoder": VectorEncoder,
    "vector_decoder": VectorDecoder,
    "latent": Latent,
    "sequence_model": SequenceModel,
    "head": Head,
    "agent_state": AgentState,
    "objective": Objective,
    "policy": Policy,
    "sampler": Sampler,
}
"""What every kind of part has to offer."""

"""Modules and data small enough for a test to run them in milliseconds, and the statistics tests share."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stormlit.config import components
from stormlit.data import Batch, Trajectory
from stormlit.ops.spaces import channels_first
from stormlit.registry import schema
from stormlit.spaces import ObservationSpace
from stormlit.storm.agent import ActorCritic
from stormlit.storm.imagination import Imagination
from stormlit.storm.world_model import WorldModel

IMAGE = (16, 16, 3)  # Y, X, C
VECTORS = ObservationSpace(None, (("place", 2), ("speed", 1)))
BOTH = ObservationSpace((16, 16, 3), VECTORS.vectors)
ACTIONS = 3
HIDDEN = 16
LATENT = 16  # Z of tokens that come from no latent
LENGTH = 7  # T of random tokens
# Applied to every part that has the option; the others keep their own defaults.
SMALL_OPTIONS: Mapping[str, Any] = {"stem_channels": 4, "groups": 4, "classes": 4, "num_heads": 2}


def small_part(kind: str, name: str, **options: Any) -> dict[str, Any]:
    """The component node of a part, with its widths reduced."""
    assert kind in {*components.PART_KEYS.values(), *components.PART_LISTS.values()}
    reduced = {option: SMALL_OPTIONS[option] for option in schema(kind, name) if option in SMALL_OPTIONS}
    return {"name": name, **reduced, **options}


def small_world_model(sequence_model: str = "transformer", seed: int = 0, **changes: Any) -> WorldModel:
    """A world model of 16 x 16 pixels in evaluation mode; ``changes`` replace constructor arguments."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "hidden_dim": HIDDEN,
        "encoder": small_part("encoder", "cnn"),
        "decoder": small_part("decoder", "cnn"),
        "latent": small_part("latent", "categorical"),
        "sequence_model": small_part("sequence_model", sequence_model),
        "reward_head": {"name": "mlp"},
        "continuation_head": {"name": "mlp"},
        "loss_scales": {"reconstruction": 1.0, "reward": 2.0, "continuation": 3.0, "dyn": 0.5, "rep": 0.1},
        "free_bits": 0.25,
        "free_bits_clip": "step",
        "reward_bins": 21,
        "reward_low": -5.0,
        "reward_high": 5.0,
        "optimizer": {"learning_rate": 1e-3, "eps": 1e-8, "clip_norm": 1000.0},
    }
    return WorldModel(
        changes.pop("observations", IMAGE), changes.pop("actions", ACTIONS), **{**settings, **changes}
    ).eval()


def small_agent(world_model: WorldModel | None = None, seed: int = 0, **changes: Any) -> ActorCritic:
    """An agent for ``small_world_model`` in evaluation mode; ``changes`` replace constructor arguments."""
    latent_dim = 16 if world_model is None else world_model.latent_dim
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "hidden_dim": HIDDEN,
        "agent_state": {"name": "both"},
        "actor": {"name": "mlp"},
        "critic": {"name": "mlp"},
        "gamma": 0.9,
        "lambda_": 0.8,
        "lambda_bootstrap": "next",
        "loss_scales": {"policy": 1.0, "entropy": 0.01, "value": 1.0, "slow_value": 1.0},
        "slow_critic_decay": 0.9,
        "slow_critic_target": "value",
        "return_normalizer": {"decay": 0.99, "low": 5.0, "high": 95.0, "minimum": 1.0},
        "value_bins": 21,
        "value_low": -5.0,
        "value_high": 5.0,
        "optimizer": {"learning_rate": 1e-3, "eps": 1e-8, "clip_norm": 1000.0},
    }
    actions = ACTIONS if world_model is None else world_model.action_space
    return ActorCritic(latent_dim, HIDDEN, changes.pop("actions", actions), **{**settings, **changes}).eval()


def random_batch(
    rows: int = 2,
    length: int = 6,
    seed: int = 0,
    starts: tuple[tuple[int, int], ...] = (),
    observations: ObservationSpace | None = None,
) -> Batch:
    """Random experience; ``starts`` are the (row, step) pairs at which an episode begins, after one that terminated.

    observations: what is seen, None for an ``IMAGE``.
    """
    generator = torch.Generator().manual_seed(seed)
    space = ObservationSpace.of(observations or IMAGE)
    image = () if space.image is None else space.image
    frames = torch.randint(256, (rows, length, *image), generator=generator, dtype=torch.uint8)
    vectors = torch.randn(rows, length, space.width, generator=generator) if space.vectors else None
    if vectors is not None:
        numbers = vectors.view(torch.uint8)
        frames = vectors if space.image is None else torch.cat([numbers, frames.flatten(2)], dim=-1)
    terminated = torch.zeros(rows, length, dtype=torch.bool)
    is_first = torch.zeros(rows, length, dtype=torch.bool)
    for row, step in starts:
        is_first[row, step] = True
        if step > 0:
            terminated[row, step - 1] = True
    action = torch.randint(ACTIONS, (rows, length), generator=generator)
    reward = torch.randn(rows, length, generator=generator)
    return Batch(channels_first(space, frames), action, reward, terminated, is_first)


def random_trajectory(rows: int = 4, horizon: int = 5, latent_dim: int = 16, seed: int = 0) -> Trajectory:
    """Random rollouts in the shapes of ``small_world_model``, some of them partly past their end."""
    generator = torch.Generator().manual_seed(seed)
    return Trajectory(
        latent=torch.randn(rows, horizon + 1, latent_dim, generator=generator),
        hidden=torch.randn(rows, horizon + 1, HIDDEN, generator=generator),
        action=torch.randint(ACTIONS, (rows, horizon), generator=generator),
        reward=torch.randn(rows, horizon, generator=generator),
        continuation=torch.rand(rows, horizon, generator=generator),
        weight=torch.rand(rows, horizon, generator=generator),
    )


def imagine(
    world_model: WorldModel,
    agent: ActorCritic,
    context: Batch,
    *,
    horizon: int,
    from_posterior: bool,
    hard_ends: bool = False,
) -> Trajectory:
    """One imagination of ``horizon`` steps after each context."""
    start: Literal["prior", "posterior"] = "posterior" if from_posterior else "prior"
    rollouts = Imagination(world_model, agent, horizon=horizon, start=start, ends="hard" if hard_ends else "weighted")
    return rollouts(context)


def dense_twohot(value: float, bins: list[float]) -> list[float]:
    """The two-hot encoding of ``symlog(value)`` over all bins, by walking through them."""
    x = math.copysign(math.log(1 + abs(value)), value)
    x = min(max(x, bins[0]), bins[-1])
    encoding = [0.0] * len(bins)
    for i in range(len(bins) - 1):
        if bins[i] <= x <= bins[i + 1]:
            share = (x - bins[i]) / (bins[i + 1] - bins[i])
            encoding[i], encoding[i + 1] = 1 - share, share
            break
    return encoding


def dense_cross_entropy(logits: Tensor, value: float, bins: Tensor) -> float:
    """Cross-entropy of one row of logits with the dense two-hot encoding, in float64."""
    log_probs = logits.detach().double().log_softmax(-1)
    return -float((torch.tensor(dense_twohot(value, bins.tolist()), dtype=torch.float64) * log_probs).sum())


def assert_distributed_as(counts: Tensor, probabilities: Tensor) -> None:
    """Pearson's chi-square at p = 1e-4 (Wilson and Hilferty's approximation); impossible classes never occur."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    counts, probabilities = counts[possible].double(), probabilities[possible].double()
    expected = probabilities / probabilities.sum() * counts.sum()
    statistic = float(((counts - expected).square() / expected).sum())
    freedom = len(counts) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} with {freedom} degrees of freedom exceeds {limit:.1f}"


def gradientless(module: torch.nn.Module) -> list[str]:
    """Names of the parameters that want a gradient and got none, or only zeros."""
    wanting = [(name, p.grad) for name, p in module.named_parameters() if p.requires_grad]
    return [name for name, gradient in wanting if gradient is None or not gradient.any()]


def random_tokens(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens; the first row has an episode start at step 3, the second at steps 2 and 5."""
    is_first = torch.zeros(rows, LENGTH, dtype=torch.bool)
    is_first[0, 3] = is_first[1, 2] = is_first[1, 5] = True
    return torch.randn(rows, LENGTH, LATENT), torch.randint(ACTIONS, (rows, LENGTH)), is_first


def pairwise(words: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Choices in which every two values of two words come together at least once, found greedily."""
    places = {word: range(len(values)) for word, values in words.items()}
    missing = {
        frozenset([(a, i), (b, j)]) for a, b in itertools.combinations(words, 2) for i in places[a] for j in places[b]
    }
    found: list[dict[str, Any]] = []
    while missing:
        chosen = dict(sorted(min(missing, key=sorted)))  # sets have another order in each process
        for word in words:
            if word not in chosen:
                chosen[word] = max(
                    places[word],
                    key=lambda i: sum(frozenset([(word, i), other]) in missing for other in chosen.items()),
                )
        missing -= {frozenset(pair) for pair in itertools.combinations(chosen.items(), 2)}
        found.append({word: values[chosen[word]] for word, values in words.items()})
    return found


def bad_batch() -> Batch:
    batch = random_batch(rows=3, length=5)
    batch.reward[1, 2] = math.nan
    return batch


def bad_trajectory() -> Trajectory:
    trajectory = random_trajectory()
    trajectory.reward[0, 0] = math.inf
    return trajectory


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())

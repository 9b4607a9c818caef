"""Policies: hand-worked distributions over actions, in the agent's one loss, and refused where they misfit."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

import stormlit
from broken_parts import changed
from small import imagine, random_batch, random_trajectory, small_agent, small_world_model
from stormlit.data import Batch
from stormlit.errors import ConfigError, PartError
from stormlit.nn.building import build_policy
from stormlit.nn.policies import BoundedNormalPolicy, CategoricalPolicy, CategoricalsPolicy
from stormlit.ops.spaces import random_like
from stormlit.spaces import ActionSpace
from stormlit.storm.acting import Player

MULTI = ActionSpace.choices("multi_discrete", (3, 2))
BITS = ActionSpace.choices("multi_binary", (2, 2))
BOX = ActionSpace.box(2)
SPACES = (ActionSpace.of(3), MULTI, BITS, BOX)


def log(*probabilities: float) -> Tensor:
    return torch.tensor([math.log(p) for p in probabilities])


# Hand-worked numbers


def test_a_categorical_with_a_uniform_mix() -> None:
    """0.8 (0.5, 0.25, 0.25) + 0.2 / 3 = (0.46667, 0.26667, 0.26667)."""
    policy = CategoricalPolicy(ActionSpace.of(3), unimix=0.2)
    distribution = policy(log(0.5, 0.25, 0.25) + 7.0)
    assert torch.allclose(distribution.exp(), torch.tensor([7 / 15, 4 / 15, 4 / 15]))
    assert policy.log_prob(distribution, torch.tensor(1)).item() == pytest.approx(math.log(4 / 15))
    expected = -(7 / 15 * math.log(7 / 15) + 8 / 15 * math.log(4 / 15))
    assert policy.entropy(distribution).item() == pytest.approx(expected)
    assert policy.mode(distribution).item() == 0


def test_several_categoricals_add_up_over_their_choices() -> None:
    """(0.5, 0.25, 0.25) and (0.1, 0.9): p(1, 1) = 0.225."""
    policy = CategoricalsPolicy(MULTI)
    distribution = policy(torch.cat([log(0.5, 0.25, 0.25) + 3.0, log(0.1, 0.9) - 2.0]))
    assert policy.log_prob(distribution, torch.tensor([1, 1])).item() == pytest.approx(math.log(0.225))
    entropies = 1.5 * math.log(2.0), -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert policy.entropy(distribution).item() == pytest.approx(sum(entropies))
    assert policy.mode(distribution).tolist() == [0, 1]
    torch.manual_seed(0)
    drawn = policy.sample(distribution.expand(8000, -1))
    assert torch.allclose(drawn[:, 0].bincount() / 8000, torch.tensor([0.5, 0.25, 0.25]), atol=0.02)
    assert drawn[:, 1].float().mean().item() == pytest.approx(0.9, abs=0.02)
    together = ((drawn[:, 0] == 0) & (drawn[:, 1] == 1)).float().mean().item()
    assert together == pytest.approx(0.45, abs=0.02)


def test_bits_are_choices_among_two() -> None:
    policy = CategoricalsPolicy(BITS, unimix=0.5)
    distribution = policy(torch.cat([log(0.8, 0.2), log(0.5, 0.5)]))  # 0.5 (0.8, 0.2) + 0.25 = (0.65, 0.35)
    assert policy.log_prob(distribution, torch.tensor([1, 0])).item() == pytest.approx(math.log(0.35 * 0.5))


def test_a_bounded_normal() -> None:
    """m = 0.5493 gives a mean of 0.5, m = 0 one of 0; s = -2 a deviation of 0.1 + 0.9 / 2, s = 100 one of 1."""
    policy = BoundedNormalPolicy(BOX)
    distribution = policy(torch.tensor([math.atanh(0.5), 0.0, -2.0, 100.0]))
    assert distribution.tolist() == pytest.approx([0.5, 0.0, 0.55, 1.0])
    assert policy(torch.tensor([0.0, 0.0, -100.0, 0.0]))[2].item() == pytest.approx(0.1)
    # One deviation from the mean, and two.
    score = policy.log_prob(distribution, torch.tensor([1.05, -2.0])).item()
    assert score == pytest.approx(-0.5 - math.log(0.55) - 2.0 - math.log(2 * math.pi))
    entropy = math.log(0.55) + math.log(2 * math.pi * math.e)
    assert policy.entropy(distribution).item() == pytest.approx(entropy)
    assert policy.mode(distribution).tolist() == pytest.approx([0.5, 0.0])
    torch.manual_seed(0)
    drawn = policy.sample(distribution.expand(20000, -1))
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.5, 0.0], abs=0.03)
    assert drawn.std(dim=0).tolist() == pytest.approx([0.55, 1.0], abs=0.03)
    narrow = BoundedNormalPolicy(BOX, min_std=0.2, max_std=0.4)
    assert narrow(torch.tensor([0.0, 0.0, -2.0, -2.0]))[2].item() == pytest.approx(0.3)


# Which is chosen, and which is refused


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (SPACES[0], "CategoricalPolicy"),
        (MULTI, "CategoricalsPolicy"),
        (BITS, "CategoricalsPolicy"),
        (BOX, "BoundedNormalPolicy"),
    ],
)
def test_auto_chooses_the_policy_that_fits_and_adds_nothing_to_the_weights(space: ActionSpace, expected: str) -> None:
    policy = build_policy("auto", space, key="agent.policy")
    assert type(policy).__name__ == expected
    assert not any("distribution" in name for name in small_agent(actions=space).state_dict())


@pytest.mark.parametrize(
    ("name", "space", "sentence"),
    [
        (
            "categorical",
            BOX,
            r"is for Discrete actions, the environment has Box\(-1 to 1, 2\): choose from auto, bound",
        ),
        ("bounded", BOX, "no policy is called 'bounded'"),
    ],
)
def test_a_policy_that_does_not_fit_is_one_sentence(name: str, space: ActionSpace, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^agent\.policy={name}.*{sentence}") as raised:
        small_agent(actions=space, policy=name)
    assert "\n" not in str(raised.value)


# The laws find what is wrong


class Detached(BoundedNormalPolicy):
    def log_prob(self, distribution: Tensor, action: Tensor) -> Tensor:
        return super().log_prob(distribution.detach(), action) + 0 * distribution.sum(-1)


class Unbounded(BoundedNormalPolicy):
    def forward(self, output: Tensor) -> Tensor:
        mean, std = output.float().chunk(2, dim=-1)
        return torch.cat([mean, 0.5 + std.sigmoid()], dim=-1)


class NoSpaces(torch.nn.Module):
    def __init__(self, action_space: ActionSpace) -> None:
        super().__init__()
        self.out_dim = action_space.num_actions


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (
            changed(CategoricalPolicy, "forward", lambda log_probs: log_probs + 1.0),
            "the probabilities of all .* actions sum to",
        ),
        (changed(BoundedNormalPolicy, "entropy", lambda nats: nats - 0.5), "entropy gives .* nats for Box"),
        (changed(CategoricalsPolicy, "sample", torch.zeros_like), "sample draws the same MultiDiscrete"),
        (
            changed(CategoricalsPolicy, "log_prob", lambda score: score.mean().expand(score.shape)),
            "the probabilities of all|lets one row of a batch depend on the others",
        ),
        (Detached, "log_prob passes no gradient to the actor's output"),
        (changed(CategoricalPolicy, "mode", lambda mode: (mode + 1) % 2), "is likelier than the mode"),
        (Unbounded, "the mode is outside Box"),
        (changed(BoundedNormalPolicy, "log_prob", Tensor.bfloat16), "bfloat16 where torch.float32 is expected"),
        (NoSpaces, "has no 'fits', which every policy has"),
    ],
)
def test_a_broken_policy_is_told_what_is_wrong(cls: type, sentence: str) -> None:
    sentences = stormlit.check_part("policy", cls)
    assert any(re.search(sentence, told) for told in sentences), sentences


# In the agent and the world model


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_loss_is_one_formula(space: ActionSpace) -> None:
    """Equation 7's first two terms with the log-probability and the entropy of the policy, whatever it is."""
    agent, trajectory = small_agent(actions=space), random_trajectory()
    trajectory.action = random_like(space, torch.from_numpy(space.zeros(*trajectory.reward.shape)))
    losses = agent.losses(trajectory)
    distribution = agent.policy(trajectory.latent[:, :-1], trajectory.hidden[:, :-1])
    entropy = agent.distribution.entropy(distribution)
    assert losses.terms["entropy"].item() == pytest.approx(-(trajectory.weight * entropy).mean().item(), abs=1e-6)
    agent.zero_grad()
    losses.terms["policy"].backward()
    assert any(p.grad is not None and p.grad.any() for p in agent.actor.parameters())


def _batch(space: ActionSpace) -> Batch:
    torch.manual_seed(0)
    batch = random_batch(starts=((0, 0), (1, 3)))
    batch.action = random_like(space, torch.from_numpy(space.zeros(2, 6)))
    return batch


def test_the_player_gives_and_remembers_clipped_actions_and_imagination_does_not_clip() -> None:
    """A sample outside [-1, 1] is scored as drawn; the world model is given what an environment would take."""
    world_model = small_world_model(actions=BOX)
    agent = small_agent(world_model, policy={"name": "bounded_normal", "min_std": 5.0, "max_std": 6.0})
    batch = _batch(BOX)
    player = Player(world_model, agent, 2, context_length=4)
    actions = player.act(batch.obs[:, 0].permute(0, 2, 3, 1).numpy(), batch.is_first[:, 0].numpy())
    assert abs(actions).max() == 1.0 and torch.equal(player.action[:, 0], torch.from_numpy(actions))
    drawn = imagine(world_model, agent, batch, horizon=3, from_posterior=True).action
    assert drawn.abs().max() > 1.0
    assert torch.equal(world_model.encode_action(drawn), drawn.clamp(-1, 1))


def test_a_sequence_model_for_numbers_alone_is_refused_for_vectors() -> None:
    name = "broken_parts:SoundSequence"
    assert small_world_model(sequence_model=name).sequence_model is not None
    with pytest.raises(PartError, match=r"^world_model\.sequence_model=.* given Box\(-1 to 1, 2\) actions as vectors"):
        small_world_model(sequence_model=name, actions=BOX)

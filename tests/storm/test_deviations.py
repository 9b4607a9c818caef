"""The released code's departures from the paper: each is an option, and the two behaviours differ as described."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from small import (
    ACTIONS,
    IMAGE,
    imagine,
    random_batch,
    random_trajectory,
    small_agent,
    small_world_model,
)
from stormlit.analysis.evaluate import evaluate
from stormlit.config.compose import compose, to_tree
from stormlit.envs import EnvSettings, VectorEnv
from stormlit.ops import categorical
from stormlit.ops.losses import kl_balance
from stormlit.ops.returns import lambda_returns
from stormlit.storm.acting import Player
from stormlit.storm.agent import ReturnNormalizer
from stormlit.storm.collect import Collector
from stormlit.storm.replay import ReplayBuffer
from training import still

CATCH = EnvSettings(game=None, id="stormlit/Catch-v0", size=16)
TABLE = (Path(__file__).parents[2] / "docs" / "deviations.md").read_text()


# The table


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_official_and_storm_differ_in_exactly_the_options_of_the_table() -> None:
    rows = re.findall(r"^\| \d+ \| `([\w.]+)` \| `([^`]+)` \| `([^`]+)` \|", TABLE, flags=re.M)
    told = {key: (yaml.safe_load(default), yaml.safe_load(official)) for key, default, official in rows}
    storm, official = (dict(_leaves(to_tree(compose([name])))) for name in ("storm", "official"))
    assert storm.keys() == official.keys()
    assert told == {key: (storm[key], official[key]) for key in storm if storm[key] != official[key]}


# One by one, in the order of the table


def test_1_lambda_return_of_the_next_or_the_current_value() -> None:
    """G_1 = 2 + .5 (.5 V + .5 30), G_0 = 1 + .5 (.5 V + .5 G_1), with V = 30, 20 next or 20, 10 current."""
    reward, value, discount = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0, 30.0]]), torch.full((1, 2), 0.5)
    assert lambda_returns(reward, value, discount, 0.5, "next").tolist() == [[10.25, 17.0]]
    assert lambda_returns(reward, value, discount, 0.5, "current").tolist() == [[7.125, 14.5]]


def _seen_latents(latent: str, frames: list[int]) -> list[Tensor]:
    """What the policy is given at each of some frames of one brightness each."""
    world_model = small_world_model()
    agent, seen = small_agent(world_model), []
    act = agent.act

    def noted(latent: Tensor, hidden: Tensor, *, greedy: bool = False) -> Tensor:
        seen.append(latent)
        return act(latent, hidden, greedy=True)

    agent.act = noted  # type: ignore[method-assign]
    player = Player(world_model, agent, num_envs=1, context_length=4, latent=latent)  # type: ignore[arg-type]
    for step, brightness in enumerate(frames):
        torch.manual_seed(step)
        player.act(np.full((1, *IMAGE), brightness, np.uint8), np.array([step == 0]))
    return seen


def test_2_the_policy_sees_the_current_frame_or_a_prediction_of_it() -> None:
    for latent, depends_on_last_frame in (("posterior", True), ("prior", False)):
        dark, bright = (_seen_latents(latent, [10, 10, last])[-1] for last in (0, 255))
        assert torch.equal(dark, bright) != depends_on_last_frame


def test_2_without_a_context_the_prior_s_action_is_uniform() -> None:
    world_model = small_world_model()
    agent = small_agent(world_model)
    torch.nn.init.constant_(agent.actor.output.bias, 0.0)
    agent.actor.output.bias.data[1] = 100.0  # always action 1
    player = Player(world_model, agent, num_envs=600, context_length=4, latent="prior")
    frames = np.zeros((600, *IMAGE), np.uint8)
    first = player.act(frames, np.ones(600, bool))
    assert np.bincount(first, minlength=ACTIONS).min() > 150
    assert (player.act(frames, np.zeros(600, bool)) == 1).all()


@pytest.mark.parametrize(("clear", "length"), [(True, 1), (False, 3)])
def test_3_an_episode_s_end_clears_the_context_or_not(clear: bool, length: int) -> None:
    world_model = small_world_model()
    player = Player(world_model, small_agent(world_model), num_envs=1, context_length=4, clear_context=clear)
    frames = np.zeros((1, *IMAGE), np.uint8)
    for is_first in (True, False, True):
        player.act(frames, np.array([is_first]))
    assert player.length.tolist() == [length]


@pytest.mark.parametrize(("seeds", "count"), [("fresh", 6), ("same", 1)])
def test_4_episodes_have_seeds_of_their_own_or_one_for_all(seeds: str, count: int) -> None:
    settings = EnvSettings(game=None, id="stormlit/Catch-v0", size=16, num_envs=2, episode_seeds=seeds)  # type: ignore[arg-type]
    env, episodes = VectorEnv(settings, seed=3), []
    env.reset()
    while len(episodes) < 6:
        episodes += env.step(np.ones(2, int)).episodes
    assert len({episode.seed for episode in episodes}) == count


def _ring(**options: Any) -> ReplayBuffer:
    """Seven steps in a ring of five: rows hold 5, 6, 2, 3, 4 in the order of storage; 4 begins an episode."""
    replay = ReplayBuffer(5, 1, (1, 1, 1), device=torch.device("cpu"), seed=0, **options)
    for step in range(7):
        replay.append(np.full((1, 1, 1, 1), step), np.array([0]), np.array([float(step)]), [False], [step == 4])
    return replay


def test_5_windows_tell_where_episodes_begin_or_hide_it() -> None:
    assert _ring().sample(50, 5).is_first.sum() == 50
    assert _ring(episode_starts="ignored").sample(50, 5).is_first.sum() == 0


def test_5_windows_follow_age_or_storage_across_the_seam() -> None:
    seen = [{tuple(row) for row in _ring(order=order).sample(200, 3).reward.tolist()} for order in ("age", "storage")]
    assert seen == [{(2, 3, 4), (3, 4, 5), (4, 5, 6)}, {(5, 6, 2), (6, 2, 3), (2, 3, 4)}]


def test_6_the_slow_term_pulls_to_slow_values_or_to_their_lambda_return() -> None:
    trajectory = random_trajectory()
    terms, expected = [], []
    for target in ("value", "lambda_return"):
        agent = small_agent(slow_critic_target=target)
        for parameter in agent.slow_critic.parameters():
            parameter.data.mul_(-1.0)  # a slow critic that differs
        state = agent.agent_state(trajectory.latent, trajectory.hidden)
        slow = agent.value_encoding.decode(agent.slow_critic(state))
        if target == "lambda_return":
            discount = agent.gamma * trajectory.continuation
            goal = lambda_returns(trajectory.reward, slow, discount, agent.lambda_)
        else:
            goal = slow[:, :-1]
        loss = agent.value_encoding.loss(agent.critic(state[:, :-1]), goal.detach())
        expected.append((trajectory.weight * loss).mean().item())
        terms.append(agent.losses(trajectory).terms["slow_value"].item())
    assert terms == pytest.approx(expected, rel=1e-5)
    assert abs(terms[0] - terms[1]) > 1e-4


def test_7_free_bits_for_each_step_or_for_the_mean() -> None:
    """KLs of 0 and ln 4 with half a nat free: mean of (.5, 1.39), or the larger of .5 and their mean .69."""
    even, sure = torch.full((4,), math.log(0.25)), torch.tensor([0.0, -100.0, -100.0, -100.0])
    posterior = torch.stack([even, sure]).view(1, 2, 1, 4)
    prior, mask = torch.stack([even, even]).view(1, 2, 1, 4), torch.ones(1, 2, dtype=torch.bool)
    by_step = kl_balance(categorical.divergence, posterior, prior, mask, 0.5, "step")
    by_mean = kl_balance(categorical.divergence, posterior, prior, mask, 0.5, "mean")
    assert [x.item() for x in by_step[:2]] == pytest.approx([(0.5 + math.log(4)) / 2] * 2)
    assert [x.item() for x in by_mean[:2]] == pytest.approx([math.log(4) / 2] * 2)


def test_8_imagined_ends_are_weighted_or_hard() -> None:
    world_model = small_world_model()
    agent, context = small_agent(world_model), random_batch(rows=64, length=4)
    for hard in (False, True):
        torch.manual_seed(0)
        dreamt = imagine(world_model, agent, context, horizon=5, from_posterior=False, hard_ends=hard)
        probability = world_model.continuation(dreamt.hidden[:, 1:])
        if hard:
            assert torch.equal(dreamt.continuation, (probability >= 0.5).float()) and dreamt.weight.unique() == 1.0
        else:
            assert torch.equal(dreamt.continuation, probability) and dreamt.weight.unique().numel() > 64


def test_9_the_percentile_average_starts_at_its_first_value_or_at_zero() -> None:
    """Returns 0..100: percentiles 5 and 95, a distance of 90; from zero the first average is a tenth of it."""
    returns = torch.arange(101.0)
    assert ReturnNormalizer(decay=0.9, start="first").update(returns) == pytest.approx(90.0)
    assert ReturnNormalizer(decay=0.9, start="zero").update(returns) == pytest.approx(9.0, rel=1e-5)


def test_9_percentiles_between_returns_or_a_return_itself() -> None:
    """Of 1..10 the 25th and 75th: 3.25 and 7.75 between returns; the 2nd and 7th smallest are 2 and 7."""
    for percentile, expected in (("linear", [3.25, 7.75]), ("kth", [2.0, 7.0])):
        scale = ReturnNormalizer(low=25.0, high=75.0, percentile=percentile)  # type: ignore[arg-type]
        scale.update(torch.arange(1.0, 11.0))
        assert scale.bounds.tolist() == pytest.approx(expected)


def test_10_a_return_is_complete_or_passes_its_last_reward_on() -> None:
    """Catch pays with the last reward alone: the returns reported are then those of the episodes before."""
    reported = []
    for returns in ("complete", "without_last_reward"):
        world_model, envs = small_world_model(), VectorEnv(CATCH, seed=1)
        player = Player(world_model, small_agent(world_model), num_envs=1, context_length=2)
        replay = ReplayBuffer(99, 1, (16, 16, 3), device=torch.device("cpu"), seed=0)
        collector = Collector(envs, player, replay, seed=0, returns=returns)  # type: ignore[arg-type]
        steps = [collector.step(collector.select_action(random=True)) for _ in range(70)]
        reported.append([episode.episode_return for episodes in steps for episode in episodes])
    complete, passed_on = reported
    assert passed_on == [0.0, *complete[:-1]] and len(complete) == 10


def test_11_episodes_are_dealt_out_or_the_first_to_end_count(short_or_long: EnvSettings) -> None:
    means = {}
    for selection in ("dealt", "first_to_end"):
        results = [
            evaluate("still", still, short_or_long, episodes=5, num_envs=5, seed=seed, selection=selection)  # type: ignore[arg-type]
            for seed in range(30)
        ]
        assert all(len(result.episodes) == 5 for result in results)
        means[selection] = np.mean([result.mean for result in results])
    # Half of all episodes are long and return 1; the short ones are over first.
    assert means["dealt"] == pytest.approx(0.5, abs=0.1) and means["first_to_end"] < 0.25

"""Whole episodes, dealt out beforehand, reproducible, and without a trace in the caller's random state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stormlit.analysis.evaluate import ConstantPolicy, Evaluation, Policy, RandomPolicy, evaluate, evaluate_baselines
from stormlit.cli import main
from stormlit.config.compose import compose
from stormlit.data import Episode
from stormlit.envs import AtariSettings, EnvSettings, VectorEnv
from stormlit.envs.catch import RANDOM_RETURN
from stormlit.runs.assembly import build_modules, player_factory
from training import newest, still, train

CATCH = EnvSettings(game=None, id="stormlit/Catch-v0", size=16)


def agent_of(words: list[str]) -> tuple[EnvSettings, Callable[[int], Policy]]:
    torch.manual_seed(0)
    config = compose(["tiny"], words)
    envs = VectorEnv(config.env, seed=0)
    world_model, agent = build_modules(config, envs.obs_shape, envs.num_actions)
    return config.env, player_factory(config, world_model.eval(), agent.eval())


@pytest.mark.parametrize(("episodes", "num_envs"), [(7, 3), (3, 5), (1, 1), (4, 4), (9, 1)])
def test_exactly_so_many_episodes_are_dealt_out_evenly(
    episodes: int, num_envs: int, short_or_long: EnvSettings
) -> None:
    shown: list[tuple[int, int]] = []
    result = evaluate(
        "still",
        still,
        short_or_long,
        episodes=episodes,
        num_envs=num_envs,
        seed=1,
        on_step=lambda counted, steps: shown.append((counted, steps)),
    )
    assert len(result.episodes) == len(result.returns) == episodes
    shares = Counter(episode.env_index for episode in result.episodes)
    assert max(shares.values()) - min(shares.values()) <= 1 and len(shares) == min(episodes, num_envs)
    assert [steps for _, steps in shown] == [min(num_envs, episodes) * (n + 1) for n in range(len(shown))]
    assert shown[-1][0] == episodes and [counted for counted, _ in shown] == sorted(counted for counted, _ in shown)
    assert len({episode.seed for episode in result.episodes}) == episodes


def test_the_same_seed_plays_the_same(short_or_long: EnvSettings) -> None:
    env, make_player = agent_of([])

    def play(seed: int, greedy: bool) -> list[Episode]:
        return evaluate("agent", make_player, env, episodes=6, num_envs=3, seed=seed, greedy=greedy).episodes

    sampled = play(0, False)
    torch.rand(5)
    assert play(0, False) == sampled
    assert {episode.seed for episode in play(1, False)}.isdisjoint(episode.seed for episode in sampled)
    assert [episode.seed for episode in play(0, True)] == [episode.seed for episode in sampled]


def test_evaluation_plays_other_episodes_than_training() -> None:
    result = evaluate("still", still, CATCH, episodes=4, num_envs=2, seed=0)
    training = VectorEnv(EnvSettings(game=None, id=CATCH.id, size=16, num_envs=2), seed=0)
    training.reset()
    seeds = set()
    for _ in range(70):
        seeds |= {episode.seed for episode in training.step(np.zeros(2, dtype=np.int64)).episodes}
    assert len(seeds) == 20 and seeds.isdisjoint(episode.seed for episode in result.episodes)


def test_the_callers_random_state_is_left_alone() -> None:
    env, make_player = agent_of([])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate("agent", make_player, env, episodes=2, num_envs=2, seed=9)
    assert torch.equal(torch.rand(3), expected)
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    evaluate("random", lambda _: RandomPolicy(3, 0), CATCH, episodes=2, num_envs=2, seed=9)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index, union-attr]


def test_every_action_is_held_as_a_baseline() -> None:
    results = evaluate_baselines(["constant"], CATCH, episodes=40, num_envs=5, seed=0)
    assert [result.policy for result in results] == ["always LEFT", "always NOOP", "always RIGHT"]
    assert evaluate_baselines([], CATCH, episodes=4, num_envs=2, seed=0) == []
    seen = [sorted(result.returns) for result in results]
    assert len({tuple(returns) for returns in seen}) > 1  # they are different policies
    # The paddle ends in the column the ball falls into one time in eight.
    assert all(result.mean == pytest.approx(RANDOM_RETURN, abs=0.35) for result in results)


@pytest.mark.slow
def test_a_constant_action_plays_a_game_without_chance_once() -> None:
    game = EnvSettings(game="Assault", size=8, max_episode_steps=60)
    right = evaluate("right", lambda _: ConstantPolicy(3), game, episodes=3, num_envs=1, seed=0)
    assert len({(episode.episode_return, episode.length) for episode in right.episodes}) == 1
    results = evaluate_baselines(["random", "constant"], game, episodes=3, num_envs=1, seed=0)
    assert [len(result.episodes) for result in results] == [3] + 7 * [1]
    assert results[4].mean == right.mean
    assert "(standard error, 1 episode, 1 of them truncated)" in results[4].summary()
    for chance in (AtariSettings(sticky_actions=0.25), AtariSettings(noop_max=30)):
        results = evaluate_baselines(["constant"], replace(game, atari=chance), episodes=2, num_envs=1, seed=0)
        assert {len(result.episodes) for result in results} == {2}


def test_a_result_in_numbers_and_words() -> None:
    episodes = [Episode(0, seed, value, 3, False, 0.0) for seed, value in enumerate([0.0, 20.0])]
    pong, catch = Evaluation("agent", "Pong", episodes), Evaluation("agent", "Catch", episodes)
    assert (pong.mean, pong.std) == (10.0, pytest.approx(14.1421, abs=1e-3))
    assert pong.human_normalized == pytest.approx((10.0 - -20.7) / (14.6 - -20.7))
    assert catch.human_normalized is None
    assert "10.00 +- 10.00" in pong.summary() and "2 episodes" in pong.summary() and "0.870" in pong.summary()
    assert "human" not in catch.summary()
    assert Evaluation("agent", "Catch", episodes[:1]).std == 0.0
    assert json.loads(json.dumps(pong.as_dict())) == pong.as_dict()
    assert [episode["episode_return"] for episode in pong.as_dict()["episodes"]] == [0.0, 20.0]


def test_the_command_prints_every_return_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "played")
    capsys.readouterr()
    words = ["eval", "played", f"run.dir={tmp_path}", "evaluation.episodes=5", "evaluation.num_envs=2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    file = run / "evaluation" / f"{newest(run).name}-greedy-5.json"
    returns = [episode["episode_return"] for episode in json.loads(file.read_text())["episodes"]]
    lines = [line for line in printed.splitlines() if line.strip().startswith("episode")]
    assert [float(line.split()[3]) for line in lines] == returns and len(returns) == 5
    assert str(file) in printed and "5 episodes" in printed
    assert main(words) == 0
    assert capsys.readouterr().out == printed
    assert main(["eval", "played", f"run.dir={tmp_path}", "evaluation.episodes=0"]) == 2
    assert "evaluation.episodes=0" in capsys.readouterr().err

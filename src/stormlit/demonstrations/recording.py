"""Recording a demonstration: a policy plays, and what the environment says is kept as it is."""

from __future__ import annotations

import dataclasses

import numpy as np

from stormlit.analysis.evaluate import Policy
from stormlit.demonstrations.files import Demonstration, Origin
from stormlit.envs import EnvFacts, EnvSettings, env_id, episode_seed, make_env
from stormlit.envs.actions import action_space_of

# Recorded episodes draw their seeds from a row that neither training nor evaluation has.
RECORDING_ROW = 2_000_000


def record(settings: EnvSettings, policy: Policy, *, steps: int, seed: int, greedy: bool = False) -> Demonstration:
    """Play ``steps`` steps; raw rewards, with lost lives told apart from ends.

    policy: plays one environment.  seed: of the episodes.  greedy: handed to the policy.
    """
    env = make_env(settings)
    actions = action_space_of(env.action_space)
    assert actions is not None
    demonstration = Demonstration(
        obs=env.get_wrapper_attr("stored_observations").zeros(steps),
        action=actions.zeros(steps),
        reward=np.empty(steps, np.float32),
        terminated=np.empty(steps, bool),
        truncated=np.empty(steps, bool),
        life_lost=np.empty(steps, bool),
    )
    ended, episode = True, 0
    for step in range(steps):
        is_first = ended
        if is_first:
            obs, _ = env.reset(seed=episode_seed(seed, RECORDING_ROW, episode))
            episode += 1
        action = policy.act(obs[np.newaxis], np.array([is_first]), greedy=greedy)[0]
        demonstration.obs[step], demonstration.action[step] = obs, action
        obs, reward, terminated, truncated, info = env.step(int(action) if actions.is_discrete else action)
        ended = terminated or truncated
        demonstration.reward[step] = reward
        demonstration.terminated[step] = terminated
        demonstration.truncated[step] = truncated and not terminated
        demonstration.life_lost[step] = info["life_lost"]
    env.close()
    return demonstration


def origin_of(settings: EnvSettings, envs: EnvFacts, policy: str | None, *, with_settings: bool) -> Origin:
    """What can be said of play in an environment.  with_settings: whether the frames were made with ``settings``."""
    return Origin(
        env_id=env_id(settings),
        num_actions=envs.action_space.num_actions if envs.action_space.is_discrete else None,
        action_meanings=envs.action_meanings,
        env=dataclasses.asdict(settings) if with_settings else None,
        policy=policy,
    )

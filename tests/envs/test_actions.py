"""Actions of every kind: how they are stored, read by networks, and taken by environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import action_envs
from action_envs import settings
from stormlit.envs import EnvSettings, VectorEnv, make_env
from stormlit.envs.actions import StoredActions, action_space_of
from stormlit.errors import ActionError, CheckpointError
from stormlit.ops.spaces import encode, random_like
from stormlit.spaces import ActionSpace, action_text

MULTI = ActionSpace.choices("multi_discrete", (3, 2))
BITS = ActionSpace.choices("multi_binary", (2, 2, 2))
EVERY_ENV = list(action_envs.SPACES)
EVERY_SPACE = (ActionSpace.of(3), MULTI, BITS, ActionSpace.box(2))


def acting(env: str) -> tuple[Any, action_envs.Acting]:
    made = make_env(settings(env))
    made.reset(seed=0)
    inner = made.unwrapped
    assert isinstance(inner, action_envs.Acting)
    return made, inner


# How they are stored


@pytest.mark.parametrize(
    ("env", "shape", "dtype", "width", "words"),
    [
        ("Started", (), np.int64, 3, "Discrete(3)"),
        ("Multi", (4,), np.int64, 11, "MultiDiscrete([3, 2, 2, 4])"),
        ("Binary", (4,), np.int64, 4, "MultiBinary(4)"),
        ("Box", (2,), np.float32, 2, "Box(-1 to 1, 2)"),
        ("BoxDouble", (2,), np.float32, 2, "Box(-1 to 1, 2)"),
        ("BoxScalar", (1,), np.float32, 1, "Box(-1 to 1, 1)"),
    ],
)
def test_a_space_is_stored_flat_and_counted_from_zero(
    env: str, shape: tuple[int, ...], dtype: type, width: int, words: str
) -> None:
    made, inner = acting(env)
    stored = action_space_of(inner.action_space)
    assert stored is not None
    assert (stored.shape, stored.dtype, stored.width, str(stored)) == (shape, dtype, width, words)
    assert action_space_of(made.action_space) == stored
    assert stored.zeros(5).shape == (5, *shape) and stored.zeros(5).dtype == dtype


@pytest.mark.parametrize("space", EVERY_SPACE, ids=str)
def test_random_actions_are_uniform_in_numpy_and_in_torch(space: ActionSpace) -> None:
    drawn = space.random(np.random.default_rng(0), 4000)
    torch.manual_seed(0)
    for actions in (drawn, random_like(space, torch.from_numpy(drawn)).numpy()):
        assert actions.dtype == space.dtype and actions.shape == (4000, *space.shape)
        assert space.first_outside(actions) is None
        if space.kind == "box":
            counts = np.histogram(actions[:, 0], 4, (-1, 1))[0]
        else:
            counts = np.bincount(actions.reshape(4000, -1)[:, 0])
        assert np.allclose(counts / 4000, 1 / len(counts), atol=0.03)
        assert len(np.unique(actions.reshape(4000, -1).sum(axis=1))) > 2


def test_constant_actions_reach_the_ends_of_every_range() -> None:
    def listed(space: ActionSpace) -> dict[str, Any]:
        return {name: np.asarray(action).tolist() for name, action in space.constants().items()}

    assert listed(ActionSpace.of(3)) == {"0": 0, "1": 1, "2": 2}
    assert listed(MULTI) == {"first": [0, 0], "last": [2, 1]}
    assert listed(ActionSpace.box(2)) == {"low": [-1, -1], "middle": [0, 0], "high": [1, 1]}
    for space in EVERY_SPACE:
        for action in space.constants().values():
            actions = np.asarray(action)[np.newaxis]
            assert space.misfit(actions) is None and space.first_outside(actions) is None


def test_an_action_is_written_for_a_person() -> None:
    assert action_text(np.array(1), ["LEFT", "STAY"]) == "STAY"
    assert action_text(np.array([2, 0]), []) == "2 0"
    assert action_text(np.array([0.5, -1.0], np.float32), []) == "+0.50 -1.00"


# How networks read them


def test_encodings_worked_out_by_hand() -> None:
    assert encode(MULTI, torch.tensor([[2, 0], [1, 1]])).tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    assert encode(BITS, torch.tensor([[1, 0, 1]])).tolist() == [[1, 0, 1]]
    assert encode(ActionSpace.box(2), torch.tensor([[0.25, -3.0]])).tolist() == [[0.25, -1.0]]


# How environments take them


def test_the_numbers_of_a_box_are_scaled_to_its_bounds_and_clipped() -> None:
    env, inner = acting("Box")  # -2 to 0.3, and 0.1 to 0.7
    for action in ([-1.0, 1.0], [0.0, 0.5], [3.0, -1.5]):
        env.step(np.array(action, np.float32))
    assert np.allclose(inner.taken, [[-2.0, 0.7], [-0.85, 0.55], [0.3, 0.1]])
    double, inner = acting("BoxDouble")  # -5 to 7, shape (2, 1)
    double.step(np.array([0.5, -np.inf], np.float32))
    assert inner.taken[0].dtype == np.float64 and inner.taken[0].tolist() == [[4.0], [-5.0]]
    scalar, inner = acting("BoxScalar")
    scalar.step(np.array([0.5], np.float32))
    assert inner.taken[0].shape == () and inner.taken[0] == np.float32(0.75)


def test_choices_are_counted_from_where_the_space_starts() -> None:
    started, inner = acting("Started")
    for action in (0, np.int64(2)):
        started.step(action)
    assert inner.taken == [-1, 1]
    multi, inner = acting("Multi")
    multi.step(np.array([2, 1, 0, 3]))
    assert inner.taken[0].tolist() == [[3, 1], [0, 1]]
    binary, inner = acting("Binary")
    binary.step(np.array([1, 0, 0, 1]))
    assert inner.taken[0].tolist() == [[1, 0], [0, 1]] and inner.taken[0].dtype == np.int8


@pytest.mark.parametrize("env", EVERY_ENV)
def test_what_reaches_an_environment_is_always_in_its_space(env: str) -> None:
    """The environment itself refuses anything else; values at the bounds, where rounding could leave them, among it."""
    made, inner = acting(env)
    stored = action_space_of(made.action_space)
    assert stored is not None
    generator = np.random.default_rng(0)
    actions = [*stored.random(generator, 200), *(np.asarray(action) for action in stored.constants().values())]
    if stored.kind == "box":
        actions += [*(generator.normal(size=(200, *stored.shape)) * 2).astype(np.float32)]
        actions += [np.nextafter(action, np.float32(0)) for action in (stored.zeros() + 1, stored.zeros() - 1)]
    for action in actions:
        if len(inner.taken) == action_envs.EPISODE:
            made.reset(seed=0)
        made.step(action)


@pytest.mark.parametrize(
    ("env", "action", "words"),
    [
        ("Box", np.array([0.0, np.nan], np.float32), "outside Box(-1 to 1, 2): expected -1 to 1"),
        ("Box", np.zeros(3, np.float32), "float32 of shape (1, 3) where Box(-1 to 1, 2) takes float32 of shape (N, 2)"),
        ("Multi", np.array([0, 2, 0, 0]), "expected 0 to 2, 0 to 1, 0 to 1, 0 to 3"),
        ("Binary", np.array([0, 0, 2, 0]), "outside MultiBinary(4)"),
        ("Started", 3, "outside Discrete(3): expected 0 to 2"),
    ],
)
def test_no_other_action_reaches_an_environment(env: str, action: Any, words: str) -> None:
    made, inner = acting(env)
    with pytest.raises(ActionError, match="action") as raised:
        made.step(action)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert inner.taken == []


def test_plain_discrete_actions_are_handed_on_as_they_are() -> None:
    env: Any = make_env(EnvSettings(game=None, id="stormlit/Catch-v0", size=16))
    while env is not env.unwrapped:
        assert not isinstance(env, StoredActions)
        env = env.env


# Several environments


def test_a_policy_may_reuse_its_array_of_actions() -> None:
    """The episode so far is kept as it was played."""
    envs = VectorEnv(settings("Box", num_envs=1), seed=3)
    envs.reset()
    actions = np.zeros((1, 2), np.float32)
    for value in (0.25, -0.5):
        actions[:] = value
        envs.step(actions)
    assert envs.state_dict()["rows"][0]["actions"] == [[0.25, 0.25], [-0.5, -0.5]]
    envs.close()


@pytest.mark.parametrize(
    ("env", "actions", "words"),
    [
        ("Box", np.array([[0.0, 0.0], [np.nan, 0.0]], np.float32), "action [nan  0.] is outside the action space"),
        ("Box", np.zeros(2, np.float32), "expected 2 Box(-1 to 1, 2) actions, got float32 of shape (2,)"),
        ("Started", np.array([0, 3]), "action 3 is outside the action space, 0 to 2"),
    ],
)
def test_a_vector_refuses_before_any_environment_has_taken_its_step(env: str, actions: Any, words: str) -> None:
    envs = VectorEnv(settings(env, num_envs=2), seed=0)
    envs.reset()
    before = envs.state_dict()
    with pytest.raises(ActionError) as raised:
        envs.step(actions)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert envs.state_dict() == before and envs.restarts == 0
    envs.close()


@pytest.mark.parametrize("saved", [[[0.5, 2.0]], [[0.5, float("nan")]], [[0.5]], ["left"]])
def test_a_checkpoint_with_other_actions_is_refused(saved: list[Any]) -> None:
    envs = VectorEnv(settings("Box", num_envs=1), seed=0)
    envs.reset()
    state = envs.state_dict()
    state["rows"][0]["actions"] = saved
    with pytest.raises(CheckpointError, match="the checkpoint holds"):
        envs.load_state_dict(state)
    envs.close()

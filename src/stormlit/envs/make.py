"""From settings to one Gymnasium environment that shows observations and takes actions as they are stored."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Any

import ale_py
import gymnasium
import numpy as np

import stormlit.envs.catch  # noqa: F401  registers stormlit/Catch-v0
from stormlit.envs.actions import SUPPORTED, StoredActions, action_space_of, described, is_stored_form
from stormlit.envs.atari import NOOP, AtariProtocol, ale_games
from stormlit.envs.checked_env import CheckedEnv
from stormlit.envs.observations import View, view_of
from stormlit.envs.settings import EnvSettings, check_settings, env_id, env_key
from stormlit.errors import ConfigError, EnvironmentSetupError, describe, first_line, nearest
from stormlit.files import class_in_module

ALE_ARGUMENTS = {
    "frameskip": "frame_skip",
    "repeat_action_probability": "sticky_actions",
    "full_action_space": "full_action_space",
    "max_num_frames_per_episode": "max_frames",
}


class ForgetLastAction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MinAtar repeats the last action by chance, at an episode's first step that of the episode before.

    An episode would then not follow from its seed, which is what going on with a run needs.
    """

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        game: Any = self.unwrapped
        game.game.last_action = 0
        return super().reset(**options)


def make_env(settings: EnvSettings) -> gymnasium.Env[np.ndarray, Any]:
    """Make one environment.

    Observations are as ``ObservationSpace`` says they are stored, images (size, size, C) uint8, actions as
    ``ActionSpace`` says. ``info["life_lost"]`` is always there: an environment's own entry, or False. What the
    environment returns is checked as ``CheckedEnv`` says. Environments other than ALE games keep their own time limit,
    if they have one; ``max_episode_steps`` comes on top.

    Raises ``EnvironmentSetupError`` for an unknown environment, a value out of range, an environment whose observations
    or actions are of no supported kind, an Atari game by an id that goes past ``env.atari``, a wrapper that is none,
    and pixels of an environment that does not render them.
    """
    check_settings(settings)
    if settings.game and settings.game not in ale_games():
        raise EnvironmentSetupError(
            f"env.game={settings.game} is not an Atari game{nearest(settings.game, ale_games())}; "
            f"any game of the Arcade Learning Environment is allowed, in CamelCase such as MsPacman"
        )
    name = env_id(settings)
    env = _make_atari(name, settings) if name.startswith("ALE/") else _make_registered(name, settings)
    if any(cls.__module__ == "minatar.gym" for cls in type(env.unwrapped).__mro__):
        env = ForgetLastAction(env)
    try:
        _check_protocol(env, settings)
        if settings.render_pixels and not name.startswith("ALE/"):
            env = _rendered(env, settings)
        for wrapper in settings.wrappers:
            env = _wrapped(env, wrapper, settings)
        view = _check_spaces(env, settings)
    except EnvironmentSetupError:
        env.close()
        raise
    wrapped: gymnasium.Env[np.ndarray, Any] = CheckedEnv(env, view, env_key(settings))
    if not is_stored_form(env.action_space):
        wrapped = StoredActions(wrapped)
    if settings.max_episode_steps is None:
        return wrapped
    return gymnasium.wrappers.TimeLimit(wrapped, settings.max_episode_steps)


def _make_atari(name: str, settings: EnvSettings) -> gymnasium.Env[np.ndarray, int]:
    atari = settings.atari
    for argument, key in ALE_ARGUMENTS.items():
        if argument in settings.kwargs:
            raise EnvironmentSetupError(f"env.kwargs.{argument} is set by env.atari.{key}: set that instead")
    env = _make_registered(
        name,
        settings,
        frameskip=1,
        repeat_action_probability=atari.sticky_actions,
        full_action_space=atari.full_action_space,
        max_num_frames_per_episode=atari.max_frames,
    )
    if atari.noop_max and env.get_wrapper_attr("get_action_meanings")()[NOOP] != "NOOP":
        env.close()
        raise EnvironmentSetupError(
            f"env.atari.noop_max={atari.noop_max} needs a NOOP action, which {env_key(settings)} lacks; set it to 0 or "
            f"env.atari.full_action_space=true"
        )
    return AtariProtocol(env, atari.frame_skip, atari.max_pool, atari.noop_max)


def _make_registered(name: str, settings: EnvSettings, **options: Any) -> gymnasium.Env[np.ndarray, int]:
    """``gymnasium.make`` with its refusals told in one sentence.

    ``options`` and ``settings.kwargs`` go to the environment's constructor.
    """
    if settings.render_pixels:
        options["render_mode"] = "rgb_array"
    options = {**settings.kwargs, **options}
    wants = "env.render_pixels=true: " if settings.render_pixels else ""
    given = "".join(f", env.kwargs.{key}={value}" for key, value in settings.kwargs.items())
    try:
        _register_plugins(name)
        return gymnasium.make(name, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        hint = nearest(name, gymnasium.registry)
        raise EnvironmentSetupError(f"{env_key(settings)} is not a registered Gymnasium environment{hint}") from error
    # A malformed id, a missing module or dependency, or a constructor that wants arguments.
    except (gymnasium.error.Error, ImportError, ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise EnvironmentSetupError(f"{wants}{env_key(settings)}{given} cannot be made: {reason}") from error
    except (Exception, SystemExit) as error:  # whatever it is: the environment's code is not ours
        raise EnvironmentSetupError(f"{wants}{env_key(settings)}{given} cannot be made: {describe(error)}") from error


def _register_plugins(name: str) -> None:
    """Let an installed package register the environments of its namespace, as Gymnasium before 1.0 did by itself."""
    namespace = name.rpartition(":")[2].partition("/")[0]
    if name not in gymnasium.registry:
        for plugin in entry_points(group="gymnasium.envs", name=namespace):
            plugin.load()()


def _rendered(env: gymnasium.Env[Any, Any], settings: EnvSettings) -> gymnasium.Env[Any, Any]:
    """The environment with what it renders as its observations."""
    modes = env.metadata.get("render_modes", [])
    if "rgb_array" not in modes:
        raise EnvironmentSetupError(
            f"env.render_pixels=true needs an environment that renders rgb_array: {env_key(settings)} renders "
            f"{', '.join(map(str, modes)) or 'nothing'}"
        )
    try:
        return gymnasium.wrappers.AddRenderObservation(env, render_only=True)
    except (Exception, SystemExit) as error:  # it is reset and rendered for the size of its pictures
        raise EnvironmentSetupError(
            f"env.render_pixels=true: {env_key(settings)} cannot be rendered: {describe(error)}"
        ) from error


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: str, settings: EnvSettings) -> gymnasium.Env[Any, Any]:
    """The environment in one of ``env.wrappers``."""
    module, _, name = wrapper.partition(":")
    try:
        if not re.fullmatch(r"[\w.]+:\w+", wrapper):
            raise ConfigError("expected module:Wrapper")
        cls = class_in_module(module, name)
    except ConfigError as error:
        raise EnvironmentSetupError(f"env.wrappers={wrapper}: {error}") from error
    if not issubclass(cls, gymnasium.Wrapper):
        raise EnvironmentSetupError(f"env.wrappers={wrapper}: {name} does not derive from gymnasium.Wrapper")
    try:
        return cls(env)
    except (Exception, SystemExit) as error:  # whatever it is: the wrapper's code is not ours
        raise EnvironmentSetupError(
            f"env.wrappers={wrapper} cannot be put around {env_key(settings)}: {describe(error)}"
        ) from error


def _check_protocol(env: gymnasium.Env[Any, Any], settings: EnvSettings) -> None:
    """Refuse ids such as Pong-v4, which bypass the Atari protocol; what others have built from a game is theirs."""
    if isinstance(env, AtariProtocol) or not isinstance(env.unwrapped, ale_py.AtariEnv):
        return
    spec = env.spec
    if spec is not None and str(spec.entry_point).startswith("ale_py"):
        games = {ale.kwargs["game"]: ale.name for ale in gymnasium.registry.values() if ale.namespace == "ALE"}
        game = games.get(spec.kwargs.get("game", ""), "NAME")
        raise EnvironmentSetupError(
            f"{env_key(settings)} is an Atari game without the protocol of env.atari: choose it with env.game={game}"
        )


def _check_spaces(env: gymnasium.Env[Any, Any], settings: EnvSettings) -> View:
    """Refuse observations and actions of kinds that are not supported; returns what stores the observations."""
    actions = getattr(env, "action_space", None)
    try:
        view = view_of(getattr(env, "observation_space", None), settings)
    except ValueError as error:
        raise EnvironmentSetupError(f"{env_key(settings)} {error}") from error
    if action_space_of(actions) is None:
        raise EnvironmentSetupError(f"{env_key(settings)} has {described(actions)} actions; supported are {SUPPORTED}")
    return view

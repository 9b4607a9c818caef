"""The configuration section ``env``: which environment is played and how it is presented to the agent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from stormlit.errors import EnvironmentSetupError

LARGEST = 2**31 - 1  # what the emulator can count to

RewardTransform = Literal["identity", "sign"]
EpisodeSeeds = Literal["fresh", "same"]
Isolation = Literal["none", "process"]


@dataclass
class AtariSettings:
    """What applies to games of the Arcade Learning Environment only; the defaults are the Atari 100k protocol."""

    frame_skip: int = 4  # emulator frames per environment step; the action is repeated, the rewards are summed
    max_pool: bool = True  # show the pixelwise maximum of a step's last two frames, against sprite flicker
    sticky_actions: float = 0.0  # probability, at each emulator frame, that the previous action is repeated instead
    noop_max: int = 0  # each episode begins with 1 to this many emulator frames without action; 0: with none
    max_frames: int = 108_000  # emulator frames after which an episode is truncated (30 minutes at 60 Hz)
    full_action_space: bool = False  # all 18 joystick actions instead of those the game reacts to


@dataclass
class EnvSettings:
    """One environment, by Atari game or by Gymnasium id: exactly one of ``game`` and ``id`` is set."""

    game: str | None = "MsPacman"  # an Atari game, in CamelCase as in the ids "ALE/<game>-v5"
    id: str | None = None  # any Gymnasium id with image observations and discrete actions
    size: int = 64  # side of the square image, in pixels
    num_envs: int = 1  # environments stepped together
    max_episode_steps: int | None = None  # environment steps after which an episode is truncated; null: no limit
    life_loss_terminates: bool = True  # store a lost life as termination (the game goes on, without a reset)
    episode_seeds: EpisodeSeeds = "fresh"  # reset each training episode with a seed of its own, or all with the same
    reward_transform: RewardTransform = "identity"  # what is learned from: the raw reward or its sign
    isolation: Isolation = "none"  # step environments in this process, or each in a process of its own
    step_timeout_seconds: float = 0.0  # a step or reset that takes longer is a crash (isolation=process); 0: no limit
    max_restarts: int = 20  # crashes that are survived, over all environments of a process; one more ends the run
    atari: AtariSettings = field(default_factory=AtariSettings)  # ignored by environments other than ALE games


def check_settings(settings: EnvSettings) -> None:
    """Raise ``EnvironmentSetupError``, naming the key, if a value is out of range or game and id are not one of two."""
    check_choice(settings)
    atari = settings.atari
    at_least = [
        ("size", settings.size, 8),
        ("num_envs", settings.num_envs, 1),
        ("max_episode_steps", settings.max_episode_steps, 1),
        ("step_timeout_seconds", settings.step_timeout_seconds, 0),
        ("max_restarts", settings.max_restarts, 0),
        ("atari.frame_skip", atari.frame_skip, 1),
        ("atari.noop_max", atari.noop_max, 0),
        ("atari.max_frames", atari.max_frames, 1),
    ]
    for key, value, lowest in at_least:
        if value is not None and value < lowest:
            raise EnvironmentSetupError(f"env.{key}={value} is out of range: it must be at least {lowest}")
        if value is not None and value > LARGEST:
            raise EnvironmentSetupError(f"env.{key}={value} is out of range: it must be at most {LARGEST}")
    if not 0.0 <= atari.sticky_actions <= 1.0:
        raise EnvironmentSetupError(
            f"env.atari.sticky_actions={atari.sticky_actions} is out of range: a probability lies in [0, 1]"
        )
    for key, word, words in (
        ("reward_transform", settings.reward_transform, get_args(RewardTransform)),
        ("isolation", settings.isolation, get_args(Isolation)),
    ):
        if word not in words:
            raise EnvironmentSetupError(f"env.{key}={word} does not exist: it must be one of {', '.join(words)}")
    if settings.step_timeout_seconds and settings.isolation == "none":
        raise EnvironmentSetupError(
            f"env.step_timeout_seconds={settings.step_timeout_seconds:g} needs env.isolation=process: an environment "
            f"that hangs in this process hangs all of it"
        )


def check_choice(settings: EnvSettings) -> None:
    """Raise ``EnvironmentSetupError`` unless exactly one of ``game`` and ``id`` is set."""
    if settings.game and settings.id:
        raise EnvironmentSetupError(
            f"env.game={settings.game} and env.id={settings.id} exclude each other: set one to null, "
            f"for example env.game=null"
        )
    if not settings.game and not settings.id:
        raise EnvironmentSetupError("no environment is chosen: set either env.game or env.id")


def env_key(settings: EnvSettings) -> str:
    """The key that chose the environment, as error messages name it: ``env.game=Pong`` or ``env.id=CartPole-v1``."""
    return f"env.game={settings.game}" if settings.game else f"env.id={settings.id}"


def env_id(settings: EnvSettings) -> str:
    """The Gymnasium id.

    >>> env_id(EnvSettings(game="Pong"))
    'ALE/Pong-v5'
    """
    return f"ALE/{settings.game}-v5" if settings.game else str(settings.id)


def is_atari(settings: EnvSettings) -> bool:
    """Whether it is a game of the Arcade Learning Environment, to which ``settings.atari`` applies."""
    return env_id(settings).startswith("ALE/")


def env_name(settings: EnvSettings) -> str:
    """A short name without module, namespace and version.

    >>> env_name(EnvSettings(game="Pong")), env_name(EnvSettings(game=None, id="stormlit/Catch-v0"))
    ('Pong', 'Catch')
    """
    check_choice(settings)
    return settings.game or re.sub(r"^.*[:/]|-v\d+$", "", str(settings.id))

"""The configuration section ``env``: which environment is played and how it is presented to the agent."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from stormlit.errors import ConfigError, EnvironmentSetupError
from stormlit.registry import Option, check_values, leaves, options_below

LARGEST = 2**31 - 1  # what the emulator can count to


@dataclass
class AtariSettings:
    """What applies to games of the Arcade Learning Environment only; the defaults are the Atari 100k protocol."""

    frame_skip: Annotated[
        int, Option("emulator frames per environment step; the action is repeated, the rewards are summed", 1, LARGEST)
    ] = 4
    max_pool: Annotated[
        bool, Option("show the pixelwise maximum of a step's last two frames, against sprite flicker")
    ] = True
    sticky_actions: Annotated[
        float, Option("probability, at each emulator frame, that the previous action is repeated instead", 0, 1)
    ] = 0.0
    noop_max: Annotated[
        int, Option("each episode begins with 1 to this many emulator frames without action; 0: with none", 0, LARGEST)
    ] = 0
    max_frames: Annotated[
        int, Option("emulator frames after which an episode is truncated (30 minutes at 60 Hz)", 1, LARGEST)
    ] = 108_000
    full_action_space: Annotated[bool, Option("all 18 joystick actions instead of those the game reacts to")] = False


@dataclass
class EnvSettings:
    """One environment, by Atari game or by Gymnasium id: exactly one of ``game`` and ``id`` is set."""

    game: Annotated[str | None, Option("an Atari game, in CamelCase as in MsPacman")] = "MsPacman"
    id: Annotated[str | None, Option("any Gymnasium id, in place of env.game")] = None
    size: Annotated[
        int, Option("rows of the image, in pixels, and columns unless env.columns says more", 8, LARGEST, role="view")
    ] = 64
    num_envs: Annotated[int, Option("environments stepped together", 1, LARGEST, role="view")] = 1
    max_episode_steps: Annotated[
        int | None, Option("environment steps after which an episode is truncated; null: no limit", 1, LARGEST)
    ] = None
    life_loss_terminates: Annotated[
        bool, Option("store a lost life as termination (the game goes on, without a reset)", role="view")
    ] = True
    episode_seeds: Annotated[
        Literal["fresh", "same"],
        Option("reset each training episode with a seed of its own, or all with the same", role="view"),
    ] = "fresh"
    reward_transform: Annotated[
        Literal["identity", "sign"],
        Option("what is learned from: the raw reward or its sign; reported returns are always raw", role="view"),
    ] = "identity"
    isolation: Annotated[
        Literal["none", "process"],
        Option("step environments in the training process, or each in a process of its own", role="operation"),
    ] = "none"
    step_timeout_seconds: Annotated[
        float,
        Option(
            "a step or reset that takes longer is a crash (isolation=process); 0: no limit",
            0,
            LARGEST,
            role="operation",
        ),
    ] = 0.0
    max_restarts: Annotated[
        int,
        Option(
            "crashes survived, over all environments of a process; one more ends the run", 0, LARGEST, role="operation"
        ),
    ] = 20
    irreproducible: Annotated[
        Literal["refuse", "restart"],
        Option(
            "an episode that, played again to go on, does not lead to where it was: refuse to go on, or begin another",
            role="operation",
        ),
    ] = "refuse"
    kwargs: Annotated[
        dict[str, Any],
        Option("arguments of the environment's constructor, each as env.kwargs.NAME=VALUE", any_keys=True),
    ] = field(default_factory=dict)
    wrappers: Annotated[
        list[str], Option("Gymnasium wrappers put around it, the innermost first, each as module:Wrapper")
    ] = field(default_factory=list)
    render_pixels: Annotated[
        bool,
        Option(
            "learn from what it renders (rgb_array) in place of its observations; games of env.game always do",
            role="view",
        ),
    ] = False
    observations: Annotated[
        list[str],
        Option("which entries of a Dict or Tuple of observations are shown, such as [image]; []: all", role="view"),
    ] = field(default_factory=list)
    columns: Annotated[
        int | None, Option("columns of the image, in pixels; null: as many as rows", 8, LARGEST, role="view")
    ] = None
    channels: Annotated[
        Literal["rgb", "as_is"],
        Option(
            "rgb: a grey image gets three equal channels; as_is: images keep their channels, of any number", role="view"
        ),
    ] = "rgb"
    values: Annotated[
        Literal["auto", "as_is", "stretched"],
        Option(
            "as_is: uint8 values are brightness of at most 255; stretched: the space's whole range becomes 0 to 255; "
            "auto: stretched unless uint8, and uint8 that ends below 128 is refused",
            role="view",
        ),
    ] = "auto"
    atari: AtariSettings = field(default_factory=AtariSettings)  # ignored by environments other than ALE games


def check_settings(settings: EnvSettings) -> None:
    """Raise ``EnvironmentSetupError``, naming the key, if a value is out of range or game and id are not one of two."""
    check_choice(settings)
    try:
        check_values(dict(options_below(EnvSettings)), dict(leaves(asdict(settings))), "env.")
    except ConfigError as error:
        raise EnvironmentSetupError(str(error)) from error
    if settings.render_pixels and settings.kwargs.get("render_mode", "rgb_array") != "rgb_array":
        raise EnvironmentSetupError(
            f"env.kwargs.render_mode={settings.kwargs['render_mode']} contradicts env.render_pixels=true, which needs "
            f"rgb_array: set one of the two"
        )
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


def image_size(settings: EnvSettings) -> tuple[int, int]:
    """Rows and columns of the image that is learned from."""
    return settings.size, settings.columns or settings.size


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


def is_deterministic(settings: EnvSettings) -> bool:
    """Whether the same actions are known to make the same episode whatever its seed: a bare Atari game's do."""
    atari = settings.atari
    return is_atari(settings) and not (atari.sticky_actions or atari.noop_max or settings.wrappers or settings.kwargs)


def env_name(settings: EnvSettings) -> str:
    """A short name without module, namespace and version.

    >>> env_name(EnvSettings(game="Pong")), env_name(EnvSettings(game=None, id="stormlit/Catch-v0"))
    ('Pong', 'Catch')
    """
    check_choice(settings)
    return settings.game or re.sub(r"^.*[:/]|-v\d+$", "", str(settings.id))

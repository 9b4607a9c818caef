"""Launchers by name, and the words that choose and set one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stormlit.config.text import value_of_word
from stormlit.errors import ConfigError, nearest
from stormlit.registry import Option, check_values, first_line, options, structured
from stormlit.sweeps.launch import Launcher

LAUNCHERS = {
    "processes": "stormlit.sweeps.launch:ProcessLauncher",
    "ray": "stormlit.sweeps.ray_launcher:RayLauncher",
    "slurm": "stormlit.sweeps.slurm_launcher:SlurmLauncher",
}


class GridOptions:
    """What the grid itself decides, whatever the launcher."""

    def __init__(
        self, *, retries: Annotated[int, Option("how often a cell that has failed is started again", 0, 1000)] = 2
    ) -> None:
        self.retries = retries


def _class(name: str) -> type:
    module, _, cls = LAUNCHERS[name].partition(":")
    return cast(type, getattr(importlib.import_module(module), cls))


def keys() -> set[str]:
    """All words that are about where cells run, and not of a run's configuration."""
    return {"launcher", *options(GridOptions), *(key for name in LAUNCHERS for key in options(_class(name)))}


def split(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words of the configuration, and those of the launcher as a mapping; of two for one key the last counts."""
    launcher, configuration = {}, []
    known = keys()
    for word in overrides:
        key, _, value = word.partition("=")
        if key in known:
            launcher[key] = value
        else:
            configuration.append(word)
    return configuration, launcher


def build(given: Mapping[str, str], on_gpu: bool, threads: int) -> tuple[Launcher, GridOptions]:
    """The launcher that words choose, and the grid's own options; raises ``ConfigError``.

    on_gpu: whether the cells train on a GPU.  threads: the most that one of them computes with.
    """
    name = given.get("launcher", "processes")
    if name not in LAUNCHERS:
        raise ConfigError(
            f"launcher={name} does not exist{nearest(name, LAUNCHERS)}; choose one of {', '.join(LAUNCHERS)}"
        )
    cls, of_grid = _class(name), options(GridOptions)
    own = {key: value for key, value in given.items() if key != "launcher" and key not in of_grid}
    for key in own:
        if key not in options(cls):
            raise ConfigError(f"launcher={name} has no option '{key}'; it has {', '.join([*options(cls), *of_grid])}")
    grid = GridOptions(**_checked(GridOptions, {key: given[key] for key in given if key in of_grid}))
    return cls(on_gpu, threads, **_checked(cls, own)), grid


def _checked(cls: type, given: Mapping[str, str]) -> dict[str, Any]:
    declared = options(cls)
    values = {key: value_of_word(declared[key], text, key) for key, text in given.items()}
    try:
        filled = OmegaConf.to_container(OmegaConf.merge(structured(cls), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'launcher'}: {first_line(error)}") from error
    check_values(declared, cast(dict[str, Any], filled))
    return cast(dict[str, Any], filled)

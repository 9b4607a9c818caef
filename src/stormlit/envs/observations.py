"""From what an environment shows to observations as they are stored: images, vectors, and nests of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from stormlit.envs.image import SUPPORTED as IMAGES
from stormlit.envs.image import ImageView, described, image_problem
from stormlit.envs.settings import EnvSettings, image_size
from stormlit.errors import nearest
from stormlit.spaces import ObservationSpace

SUPPORTED = (
    f"{IMAGES}, vectors (Box of one dimension, Discrete, MultiDiscrete, MultiBinary), and Dict and Tuple of them"
)
LARGEST = float(np.finfo(np.float32).max)
WIDEST = 2**16  # numbers of a vector: one of Discrete(n) has n
Path = tuple[str | int, ...]


class View(Protocol):
    """Makes stored observations of an environment's own.  stored: what they are then."""

    stored: ObservationSpace

    def __call__(self, obs: Any, /) -> np.ndarray:
        """Raises ``ValueError`` for what is outside the environment's space, as the end of "it returned ..."."""
        ...


class VectorView:
    """Numbers of a Box as float32, bits as 0 and 1, and each choice of a Discrete or MultiDiscrete as a one-hot."""

    def __init__(self, space: spaces.Space[Any], name: str = "observation") -> None:
        self._space = space
        self.stored = ObservationSpace(None, ((name, spaces.flatdim(space)),))

    def __call__(self, obs: Any) -> np.ndarray:
        space = self._space
        if isinstance(space, spaces.Box):
            return self._numbers(obs, space)
        if not space.contains(obs):
            told = obs if isinstance(obs, int | np.integer) else described(obs)
            raise ValueError(f"{told}, its space says {space}")
        return np.asarray(spaces.flatten(space, obs), np.float32)

    @staticmethod
    def _numbers(obs: Any, space: spaces.Box) -> np.ndarray:
        plain = isinstance(obs, np.ndarray | np.number | float | int)
        array = np.asarray(obs) if plain else np.empty(0, object)
        if array.shape != space.shape or array.dtype.kind not in "buif":
            raise ValueError(f"{described(obs)}, its space says {space.dtype} {space.shape}")
        with np.errstate(over="ignore", invalid="ignore"):  # refused as outside
            numbers = array.astype(space.dtype).reshape(-1)
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        inside = (numbers >= low) & (numbers <= high) & (np.abs(numbers.astype(np.float64)) <= LARGEST)
        if not inside.all():
            place = int(inside.argmin())
            raise ValueError(f"{numbers[place]} at place {place}, its space says {low[place]} to {high[place]}")
        return numbers.astype(np.float32)


class NestedView:
    """Some of what a Dict or Tuple holds: images one behind the other as channels of one, vectors end to end.

    views: of each, by its name and its place.
    """

    def __init__(self, views: dict[str, tuple[Path, View]]) -> None:
        self._views = views
        each = [view.stored for _, view in views.values()]
        images = [stored.image for stored in each if stored.image]
        image = (*images[0][:2], sum(channels for *_, channels in images)) if images else None
        self.stored = ObservationSpace(image, tuple(vector for stored in each for vector in stored.vectors))

    def __call__(self, obs: Any) -> np.ndarray:
        images: list[np.ndarray] = []
        vectors: list[np.ndarray] = []
        for name, (path, view) in self._views.items():
            try:
                seen = view(_at(obs, path))
            except ValueError as error:
                raise ValueError(f"{error}, in '{name}'") from error
            (images if view.stored.image else vectors).append(seen)
        return self.stored.join(
            np.concatenate(images, axis=-1) if images else None, np.concatenate(vectors) if vectors else None
        )


def view_of(space: spaces.Space[Any] | None, settings: EnvSettings) -> View:
    """What makes stored observations of those of ``space``, or of ``env.observations`` among them.

    Raises ``ValueError`` for a space that is not supported, as the end of a sentence about the environment.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        if settings.observations:
            raise ValueError(f"shows one thing, {_named(space)}: env.observations chooses from a Dict or a Tuple")
        return _single(space, settings, "observation", "")
    found = {".".join(map(str, path)): (path, inner) for path, inner in _leaves(space)}
    for chosen in settings.observations:
        if chosen not in found:
            raise ValueError(f"shows {', '.join(found)}, and no '{chosen}' of env.observations{nearest(chosen, found)}")
    wanted = {name: found[name] for name in settings.observations or found}
    if not wanted:
        raise ValueError(f"has an empty {_named(space)} as its observations; supported are {SUPPORTED}")
    return NestedView(
        {name: (path, _single(inner, settings, name, f" in '{name}'")) for name, (path, inner) in wanted.items()}
    )


def _single(space: spaces.Space[Any] | None, settings: EnvSettings, name: str, where: str) -> View:
    """The view of an image or of a vector.  where: of a sentence about it."""
    if isinstance(space, spaces.Box) and len(space.shape) > 1:
        problem = image_problem(space, settings.channels, settings.values)
        if not problem:
            return ImageView(space, image_size(settings), settings.channels, settings.values)
        raise ValueError(f"has {_named(space)} observations{where}; {problem.replace(IMAGES, SUPPORTED)}")
    vectors = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    numeric = isinstance(space, vectors) and space.dtype is not None and np.dtype(space.dtype).kind in "buif"
    if space is None or not numeric or not 0 < spaces.flatdim(space) <= WIDEST:
        more = f" of at most {WIDEST:,} numbers" if numeric else ""
        raise ValueError(f"has {_named(space)} observations{where}; supported are {SUPPORTED}{more}")
    return VectorView(space, name)


def _leaves(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    """What nested Dicts and Tuples hold, each with its place."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield path, space
        return
    for key, inner in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
        yield from _leaves(inner, (*path, key))


def _at(obs: Any, path: Path) -> Any:
    for key in path:
        try:
            obs = obs[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{described(obs)} that has no '{key}'") from error
    return obs


def _named(space: spaces.Space[Any] | None) -> str:
    """Type, dtype and shape on one line; the representation of a large Box spans several."""
    if isinstance(space, spaces.Box):
        return f"Box {space.dtype} {space.shape}"
    return "no" if space is None else type(space).__name__

"""From what an environment shows to observations as they are stored: images, vectors, and nests of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import cv2
import numpy as np
from gymnasium import spaces

from stormlit.envs.settings import EnvSettings, image_size
from stormlit.errors import nearest
from stormlit.spaces import ObservationSpace

cv2.setNumThreads(1)  # frames are small: a thread pool costs more than it gives, and fights with torch for the cores

UINT8 = np.dtype(np.uint8)
SYMBOLS_BELOW = 128  # a picture whose brightest pixel is darker than half is rare
IMAGES = "uint8 images of shape (Y, X, 3), (Y, X, 1) or (Y, X), and bounded ones of another type"
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


class ImageView:
    """Images resized by area to (Y, X, C) uint8; C is 3 where grey ones are replicated to three channels.

    space: that ``image_problem`` finds nothing wrong with.  size: (Y, X).  channels, values: see ``EnvSettings``.
    """

    def __init__(self, space: spaces.Box, size: tuple[int, int], channels: str = "rgb", values: str = "auto") -> None:
        self._space, self._size = space, size
        self._stretched = is_stretched(space, values)
        self._low, self._high = float(space.low.min()), float(space.high.max())
        kept = 1 if len(space.shape) == 2 else space.shape[2]
        self._channels = 3 if channels == "rgb" else kept
        # The type says as much, and no pixel has to be looked at.
        self._full_range = space.dtype == UINT8 and not space.low.any() and bool((space.high == 255).all())
        self.stored = ObservationSpace((*size, self._channels))

    def __call__(self, image: Any) -> np.ndarray:
        """The image as it is stored.  Raises ``ValueError`` for one outside the space, as the end of a sentence."""
        space = self._space
        if not isinstance(image, np.ndarray) or image.dtype != space.dtype or image.shape != space.shape:
            raise ValueError(f"{described(image)}, its space says {space.dtype} {space.shape}")
        if not self._full_range and not space.contains(image):
            raise ValueError(
                f"pixels from {image.min()} to {image.max()}, its space says {space.low.min()} to {space.high.max()}"
            )
        if self._stretched:  # resized before it is rounded
            image = (image.astype(np.float32) - self._low) * (255.0 / (self._high - self._low))
        return resized_image(image, self._size, self._channels)


def resized_image(image: np.ndarray, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """An image resized by area to (*size, channels), as uint8; a single channel is replicated.

    image: (Y, X, channels), (Y, X, 1) or (Y, X), uint8 or float32 in [0, 255].  size: rows and columns.
    """
    rows, columns = size
    resized = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    resized = resized.reshape(rows, columns, -1)  # OpenCV drops a single channel
    if resized.dtype != UINT8:
        resized = resized.round().clip(0, 255).astype(np.uint8)
    return resized if resized.shape[2] == channels else resized.repeat(channels, axis=2)


def is_stretched(space: spaces.Box, values: str) -> bool:
    """Whether the space's range is stretched to 0 to 255.  values: see ``EnvSettings``."""
    return values == "stretched" or (values == "auto" and space.dtype != UINT8)


def image_problem(space: spaces.Space[Any] | None, channels: str, values: str) -> str:
    """What keeps a space from being shown as images, as the end of a sentence about it; empty where nothing does.

    channels, values: see ``EnvSettings``.
    """
    if not isinstance(space, spaces.Box) or 0 in space.shape or len(space.shape) not in (2, 3):
        return f"supported are {IMAGES}"
    if space.dtype.kind not in "buif" or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return f"supported are {IMAGES}"
    if len(space.shape) == 3 and channels == "rgb" and space.shape[2] not in (1, 3):
        return f"supported are {IMAGES}; env.channels=as_is takes (Y, X, C) with any number of channels"
    low, high = float(space.low.min()), float(space.high.max())
    if is_stretched(space, values):
        return "" if low < high else f"all of them are {low:g}: there is nothing to see"
    if space.dtype != UINT8:
        return "only uint8 can be taken as brightness: leave env.values=auto, which stretches their range"
    if values == "auto" and high < SYMBOLS_BELOW:
        return (
            f"their values end at {high:g}, which may be symbols rather than brightness: env.values=stretched spreads "
            f"them over 0 to 255, env.values=as_is takes them as they are"
        )
    return ""


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


def described(value: object) -> str:
    """Type and shape, as short as they tell what is wrong."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if value is None:
        return "None"
    return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__

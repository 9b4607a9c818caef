"""Images: resized to uint8 pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from gymnasium import spaces

from stormlit.spaces import ObservationSpace

cv2.setNumThreads(1)  # frames are small: a thread pool costs more than it gives, and fights with torch for the cores

UINT8 = np.dtype(np.uint8)
SYMBOLS_BELOW = 128  # a picture whose brightest pixel is darker than half is rare
SUPPORTED = "uint8 images of shape (Y, X, 3), (Y, X, 1) or (Y, X), and bounded ones of another type"


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
        return f"supported are {SUPPORTED}"
    if space.dtype.kind not in "buif" or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return f"supported are {SUPPORTED}"
    if len(space.shape) == 3 and channels == "rgb" and space.shape[2] not in (1, 3):
        return f"supported are {SUPPORTED}; env.channels=as_is takes (Y, X, C) with any number of channels"
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


def described(value: object) -> str:
    """Type and shape, as short as they tell what is wrong."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if value is None:
        return "None"
    return f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__

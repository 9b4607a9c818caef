"""Pictures and videos: what the agent saw, what the world model made of it, and what it dreamt.

All images are (Y, X, 3) uint8 in RGB order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import imageio.v3 as imageio
import numpy as np

from stormlit.errors import ConfigError

PANEL_PIXELS = 256  # width that a dream panel is enlarged to, about
TILE_PIXELS = 128  # the same for a tile of a reconstruction grid
GRID_COLUMNS = 8
GAP = 4
MARGIN = 8  # of the footer's text
HEADER_PIXELS = 28
FOOTER_LINE_PIXELS = 24
FOOTER_LINES = 3
PROBABILITY_BAR_PIXELS = 100

BACKGROUND = (24, 24, 24)
TEXT = (230, 230, 230)
DREAM = (255, 200, 60)
END = (255, 40, 40)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.5


def write_video(path: Path, frames: np.ndarray, fps: int = 15) -> Path:
    """Write frames (T, Y, X, 3) uint8 as H.264 ``.mp4`` or as ``.gif``, whichever ``path`` ends in; return its path.

    An mp4 of odd height or width gets one black row or column more, as its colour format needs even sizes. Without
    ffmpeg a gif is written instead, and the returned path ends in ``.gif``. The file appears complete or not at all.
    Raises ``ConfigError`` for another suffix and ``ValueError`` for frames of another shape or dtype.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (T, Y, X, 3) uint8 with T > 0, not {frames.shape} {frames.dtype}")
    if path.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"the video '{path}' must end in .mp4 or .gif")
    if path.suffix == ".mp4" and not _ffmpeg_is_available():
        path = path.with_suffix(".gif")
    with _replacing(path) as temporary:
        if path.suffix == ".gif":
            imageio.imwrite(temporary, frames, plugin="pillow", extension=".gif", duration=1000 / fps, loop=0)
        else:
            even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)))
            imageio.imwrite(
                temporary,
                even,
                plugin="FFMPEG",
                fps=fps,
                codec="libx264",
                pixelformat="yuv420p",
                quality=8,
                macro_block_size=2,
                output_params=["-movflags", "+faststart"],  # lets a browser play before it has everything
            )
    return path


def write_image(path: Path, image: np.ndarray) -> Path:
    """Write an image (Y, X, 3) uint8 RGB as PNG and return ``path``; the file appears complete or not at all."""
    if path.suffix != ".png":
        raise ConfigError(f"the image '{path}' must end in .png")
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    with _replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
    return path


def dream_frames(
    real: np.ndarray,
    reconstructed: np.ndarray,
    imagined: np.ndarray,
    actions: Sequence[str],
    real_rewards: np.ndarray,
    predicted_rewards: np.ndarray,
    end_probabilities: np.ndarray,
    real_ends: np.ndarray,
    context_length: int,
) -> np.ndarray:
    """Draw what happened beside what the world model reconstructed and imagined; return (T, Y', X', 3) uint8.

    real, reconstructed, imagined: (T, Y, X, 3) uint8, enlarged by a whole factor to panels about 256 pixels wide.
    actions: T names.  real_rewards, predicted_rewards, end_probabilities: (T,) floats, real_ends: (T,) bool; entry t
    belongs to the action taken at frame t. The first ``context_length`` steps are marked "context", the others "dream";
    a red frame marks the steps that really ended the episode.
    Raises ``ValueError`` when the inputs differ in length or the three films in shape.
    """
    if not real.shape == reconstructed.shape == imagined.shape:
        raise ValueError(f"film shapes differ: {real.shape}, {reconstructed.shape}, {imagined.shape}")
    per_step = (actions, real_rewards, predicted_rewards, end_probabilities, real_ends)
    if any(len(values) != len(real) for values in per_step):
        raise ValueError(f"{len(real)} frames, but {[len(values) for values in per_step]} values")
    films = {"real": real, "reconstructed": reconstructed, "imagined": imagined}
    canvases = []
    for step in range(len(real)):
        canvas, footer_top = _panels({title: film[step] for title, film in films.items()})
        dreaming = step >= context_length
        _text(canvas, f"step {step}", MARGIN, footer_top, 90, TEXT)
        _text(canvas, "dream" if dreaming else "context", 104, footer_top, 80, DREAM if dreaming else TEXT)
        _text(canvas, f"action {actions[step]}", 190, footer_top, canvas.shape[1] - 190 - MARGIN, TEXT)
        rewards = f"reward: real {real_rewards[step]:+.2f}, predicted {predicted_rewards[step]:+.2f}"
        _text(canvas, rewards, MARGIN, footer_top + FOOTER_LINE_PIXELS, canvas.shape[1] - 2 * MARGIN, TEXT)
        _end_of_episode(canvas, footer_top + 2 * FOOTER_LINE_PIXELS, end_probabilities[step], bool(real_ends[step]))
        canvases.append(canvas)
    return np.stack(canvases)


def reconstruction_grid(real: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Put up to 8 real frames above their reconstructions; return (Y', X', 3) uint8.

    real, reconstructed: (N, Y, X, 3) uint8, enlarged by a whole factor to tiles about 128 pixels wide.
    """
    rows = []
    for frames in (real, reconstructed):
        tiles = [_enlarged(frame, TILE_PIXELS) for frame in frames[:GRID_COLUMNS]]
        rows.append(np.concatenate([_with_border(tile, right=tile is not tiles[-1]) for tile in tiles], axis=1))
    return np.concatenate([_with_border(rows[0], bottom=True), rows[1]], axis=0)


def _panels(frames: dict[str, np.ndarray]) -> tuple[np.ndarray, int]:
    """A canvas with the enlarged frames side by side under their titles, and the row where its empty footer begins."""
    panels = {title: _enlarged(frame, PANEL_PIXELS) for title, frame in frames.items()}
    height, width = next(iter(panels.values())).shape[:2]
    footer_top = HEADER_PIXELS + height + GAP
    canvas_width = len(panels) * (width + GAP) + GAP
    canvas = np.full((footer_top + FOOTER_LINES * FOOTER_LINE_PIXELS + GAP, canvas_width, 3), BACKGROUND, np.uint8)
    for column, (title, panel) in enumerate(panels.items()):
        left = GAP + column * (width + GAP)
        _text(canvas, title, left + MARGIN - GAP, 2, width - MARGIN, TEXT)
        canvas[HEADER_PIXELS : HEADER_PIXELS + height, left : left + width] = panel
    return canvas, footer_top


def _end_of_episode(canvas: np.ndarray, top: int, probability: float, ended: bool) -> None:
    """Draw the predicted probability of the episode's end as a bar and a number, and a red mark if it did end."""
    _text(canvas, f"P(end) {probability:.2f}", MARGIN, top, 110, TEXT)
    left, bottom = 124, top + FOOTER_LINE_PIXELS - 6
    filled = left + round(PROBABILITY_BAR_PIXELS * float(np.clip(probability, 0.0, 1.0)))
    cv2.rectangle(canvas, (left, top + 6), (filled, bottom), DREAM, cv2.FILLED)
    cv2.rectangle(canvas, (left, top + 6), (left + PROBABILITY_BAR_PIXELS, bottom), TEXT, 1)
    if ended:
        height, width = canvas.shape[:2]
        _text(canvas, "THE EPISODE ENDED", left + PROBABILITY_BAR_PIXELS + 16, top, 200, END)
        cv2.rectangle(canvas, (0, 0), (width - 1, height - 1), END, GAP)


def _text(canvas: np.ndarray, text: str, left: int, top: int, width: int, colour: tuple[int, int, int]) -> None:
    """Write one line of text into the box ``FOOTER_LINE_PIXELS`` high at (left, top), smaller if ``width`` is short."""
    (natural_width, _), _ = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
    scale = _FONT_SCALE * min(1.0, width / max(natural_width, 1))
    cv2.putText(canvas, text, (left, top + 17), _FONT, scale, colour, 1, cv2.LINE_AA)


def _enlarged(frame: np.ndarray, target_width: int) -> np.ndarray:
    factor = max(1, round(target_width / frame.shape[1]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def _with_border(image: np.ndarray, right: bool = False, bottom: bool = False) -> np.ndarray:
    return np.pad(image, ((0, GAP * bottom), (0, GAP * right), (0, 0)), constant_values=BACKGROUND[0])


def _ffmpeg_is_available() -> bool:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: the package is there, but no executable for this platform
        return False
    return True


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` and with its suffix, moved over ``path`` once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

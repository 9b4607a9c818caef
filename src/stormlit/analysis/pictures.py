"""Pictures and videos: what the agent saw, what the world model made of it, and what it dreamt.

All images are (Y, X, 3) uint8 in RGB order; files appear complete or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import cv2
import imageio.v3 as imageio
import numpy as np

from stormlit.analysis.dream import Dream, Views, dream_errors
from stormlit.errors import ConfigError
from stormlit.files import replacing, write_atomically
from stormlit.spaces import action_text

DREAM_FRAMES_PER_SECOND = 8  # an agent acts 15 times a second; half of that lets a person read along
PANEL_PIXELS = 256  # width that a dream panel is enlarged to, about
TILE_PIXELS = 128  # the same for a tile of a reconstruction grid
GRID_COLUMNS = 8
GAP = 4
MARGIN = 8  # of the footer's text
HEADER_PIXELS = 28
NAME_PIXELS = 124  # of what stands beside a row of frames
FOOTER_LINE_PIXELS = 24
FOOTER_LINES = 3
BAR_LEFT, BAR_PIXELS = 124, 100  # of the probability that the episode ends

BACKGROUND = (24, 24, 24)
TEXT = (230, 230, 230)
DREAM = (255, 200, 60)
END = (255, 40, 40)


def write_video(path: Path, frames: np.ndarray, fps: int = 15) -> Path:
    """Write frames (T, Y, X, 3) uint8 as H.264 ``.mp4`` or as ``.gif``, whichever ``path`` ends in; return its path.

    An mp4 of odd height or width gets one black row or column more, as its colour format needs even sizes. Without
    ffmpeg a gif is written instead, and the returned path ends in ``.gif``.
    Raises ``ConfigError`` for another suffix and ``ValueError`` for frames of another shape or dtype.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (T, Y, X, 3) uint8 with T > 0, not {frames.shape} {frames.dtype}")
    if path.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"the video '{path}' must end in .mp4 or .gif")
    ffmpeg = _ffmpeg() if path.suffix == ".mp4" else None
    if ffmpeg is None:
        path = path.with_suffix(".gif")
        film = imageio.imwrite("<bytes>", frames, plugin="pillow", extension=".gif", duration=1000 / fps, loop=0)
        write_atomically(path, film)
    else:
        with replacing(path) as file:
            _write_mp4(ffmpeg, file.name, frames, fps)
    return path


def write_image(path: Path, image: np.ndarray) -> Path:
    """Write an image (Y, X, 3) uint8 RGB as PNG and return ``path``."""
    if path.suffix != ".png":
        raise ConfigError(f"the image '{path}' must end in .png")
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_atomically(path, encoded.tobytes())
    return path


def write_dream_video(path: Path, dreams: Sequence[Dream], action_meanings: Sequence[str]) -> Path:
    """One video with the dreams after one another; returns the path really written, as ``write_video`` does."""
    frames = np.concatenate([dream_frames(dream, action_meanings) for dream in dreams])
    return write_video(path, frames, fps=DREAM_FRAMES_PER_SECOND)


def write_reconstruction_grid(path: Path, dream: Dream) -> Path:
    """Up to eight frames of a dream's window, spread evenly, above their reconstructions; the errors below them."""
    frames = shown_frames(dream)
    chosen = np.linspace(0, len(frames.real) - 1, num=min(GRID_COLUMNS, len(frames.real))).round().astype(int)
    grid = reconstruction_grid(frames.real[chosen], frames.reconstructed[chosen])
    footer = np.full((FOOTER_LINE_PIXELS, grid.shape[1], 3), BACKGROUND, np.uint8)
    errors = dream_errors(dream)
    line = f"squared error: all pixels {errors['error_reconstructed']:.5f}"
    if "error_reconstructed_moving" in errors:
        line += f", moving pixels {errors['error_reconstructed_moving']:.5f}"
    _text(footer, line, MARGIN, 0, footer.shape[1] - 2 * MARGIN, TEXT)
    return write_image(path, np.concatenate([grid, footer]))


def dream_picture(dream: Dream) -> np.ndarray:
    """Draw up to eight steps: real frames, below them their reconstructions, below those what was imagined.

    The first is the last step of the context, the others are spread evenly over the dream.  Returns (Y', X', 3) uint8.
    """
    dreamt = len(dream.action) - dream.context_length
    steps = dream.context_length - 1 + np.linspace(0, dreamt, num=min(GRID_COLUMNS, dreamt + 1)).round().astype(int)
    films = dataclasses.asdict(shown_frames(dream))
    tiles = _sheet([film[steps] for film in films.values()])
    tile_height, tile_width = (
        extent // count for extent, count in zip(tiles.shape[:2], (len(films), len(steps)), strict=True)
    )
    [sheet] = _with_border(tiles[np.newaxis], top=HEADER_PIXELS, left=NAME_PIXELS)
    for row, name in enumerate(films):
        _text(sheet, name, MARGIN, HEADER_PIXELS + row * tile_height + tile_height // 2, NAME_PIXELS - MARGIN, TEXT)
    for column, step in enumerate(steps):
        word, colour = (f"dream +{step - steps[0]}", DREAM) if column else (f"context, step {step}", TEXT)
        _text(sheet, word, NAME_PIXELS + column * tile_width, 2, tile_width - GAP, colour)
    return sheet


def dream_frames(dream: Dream, action_meanings: Sequence[str]) -> np.ndarray:
    """Draw what happened beside what the world model reconstructed and imagined; return (T, Y', X', 3) uint8.

    Frames are enlarged by a whole factor to panels about 256 pixels wide. The first ``context_length`` steps are marked
    "context", the others "dream"; a red frame marks the steps that really ended the episode.
    """
    films = dataclasses.asdict(shown_frames(dream))
    panels = [_with_border(_enlarged(film, PANEL_PIXELS), left=GAP) for film in films.values()]
    footer_pixels = GAP + FOOTER_LINES * FOOTER_LINE_PIXELS + GAP
    canvases = _with_border(np.concatenate(panels, axis=2), top=HEADER_PIXELS, right=GAP, bottom=footer_pixels)
    panel_width = panels[0].shape[2]
    for step, canvas in enumerate(canvases):
        for column, title in enumerate(films):
            _text(canvas, title, column * panel_width + MARGIN, 2, panel_width - GAP - MARGIN, TEXT)
        _footer(canvas, dream, step, action_text(dream.action[step], action_meanings))
    return canvases


def reconstruction_grid(real: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Put up to 8 real frames above their reconstructions; return (Y', X', 3) uint8.

    real, reconstructed: (N, Y, X, C) uint8, enlarged by a whole factor to tiles about 128 pixels wide.
    """
    return _sheet([real[:GRID_COLUMNS], reconstructed[:GRID_COLUMNS]])[:-GAP, :-GAP]


def shown_frames(dream: Dream) -> Views:
    """The dream's frames; raises ``ValueError`` where no image is seen, which ``plots.write_curves`` is for."""
    if dream.frames is None:
        raise ValueError("the dream has no frames")
    return dream.frames


def _footer(canvas: np.ndarray, dream: Dream, step: int, action: str) -> None:
    """Write the step's numbers below the panels, and the probability that the episode ends there as a bar, too."""
    height, width = canvas.shape[:2]
    first, second, third = (height - GAP - lines * FOOTER_LINE_PIXELS for lines in (3, 2, 1))
    dreaming = step >= dream.context_length
    _text(canvas, f"step {step}", MARGIN, first, 90, TEXT)
    _text(canvas, "dream" if dreaming else "context", 104, first, 80, DREAM if dreaming else TEXT)
    _text(canvas, f"action {action}", 190, first, width - 190 - MARGIN, TEXT)
    rewards = f"reward: real {dream.reward[step]:+.2f}, predicted {dream.predicted_reward[step]:+.2f}"
    _text(canvas, rewards, MARGIN, second, width - 2 * MARGIN, TEXT)
    probability = float(dream.end_probability[step])
    _text(canvas, f"P(end) {probability:.2f}", MARGIN, third, 110, TEXT)
    top, bottom, right = third + 6, third + FOOTER_LINE_PIXELS - 6, BAR_LEFT + BAR_PIXELS
    cv2.rectangle(canvas, (BAR_LEFT, top), (BAR_LEFT + round(BAR_PIXELS * probability), bottom), DREAM, cv2.FILLED)
    cv2.rectangle(canvas, (BAR_LEFT, top), (right, bottom), TEXT, 1)
    if dream.terminated[step]:
        _text(canvas, "THE EPISODE ENDED", right + 16, third, 200, END)
        cv2.rectangle(canvas, (0, 0), (width - 1, height - 1), END, GAP)


def _text(canvas: np.ndarray, text: str, left: int, top: int, width: int, colour: tuple[int, int, int]) -> None:
    """Write one line of text into the box ``FOOTER_LINE_PIXELS`` high at (left, top), smaller if ``width`` is short."""
    (natural_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    scale = 0.5 * min(1.0, width / max(natural_width, 1))
    cv2.putText(canvas, text, (left, top + 17), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _sheet(films: Sequence[np.ndarray]) -> np.ndarray:
    """A row of enlarged frames for each film, with a gap below and to the right of every one."""
    rows = [_with_border(_enlarged(film, TILE_PIXELS), right=GAP, bottom=GAP) for film in films]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def _enlarged(frames: np.ndarray, target_width: int) -> np.ndarray:
    factor = max(1, round(target_width / frames.shape[2]))
    return in_colours(frames).repeat(factor, axis=1).repeat(factor, axis=2)


def in_colours(frames: np.ndarray) -> np.ndarray:
    """(T, Y, X, C) uint8 as (T, Y, X, 3): grey stays grey, and of other channels each has a hue, the brightest wins."""
    channels = frames.shape[-1]
    if channels == 3:
        return frames
    hues = np.array([[[round(180 * channel / channels), 255, 255] for channel in range(channels)]], np.uint8)
    colours = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0].astype(np.uint16)
    if channels == 1:
        colours = np.array([[255, 255, 255]], np.uint16)
    brightest = frames.argmax(axis=-1)
    value = frames.max(axis=-1).astype(np.uint16)
    return (colours[brightest] * value[..., np.newaxis] // 255).astype(np.uint8)


def _with_border(images: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    return np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=BACKGROUND[0])


def _write_mp4(ffmpeg: ModuleType, name: str, frames: np.ndarray, fps: int) -> None:
    """Write frames under a name of any ending; raises ``OSError`` when not all of them are there afterwards."""
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)))
    try:
        imageio.imwrite(
            name,
            even,
            plugin="FFMPEG",
            extension=".mp4",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            quality=8,
            macro_block_size=2,
            output_params=["-f", "mp4", "-movflags", "+faststart"],  # lets a browser play before it has everything
        )
        written, _ = ffmpeg.count_frames_and_secs(name)  # a disk that fills up towards the end is no error to imageio
    except (OSError, RuntimeError) as error:
        raise OSError("ffmpeg could not write the video") from error
    if written != len(frames):
        raise OSError(f"ffmpeg could write {written} of {len(frames)} frames")


def _ffmpeg() -> ModuleType | None:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: the package is there, but no executable for this platform
        return None
    return imageio_ffmpeg

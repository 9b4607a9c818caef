"""Videos and pictures can be read back, and dream frames show what they should."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from stormlit.analysis import pictures
from stormlit.analysis.dream import Dream, Views
from stormlit.errors import ConfigError


def gradient(steps: int, rows: int, columns: int) -> np.ndarray:
    """Frames (T, Y, X, 3) that differ everywhere, red down, green across, blue in time."""
    axes = np.meshgrid(*(np.linspace(0, 255, n) for n in (steps, rows, columns)), indexing="ij")
    return np.stack([axes[1], axes[2], axes[0]], axis=-1).astype(np.uint8)


def dream(frames: np.ndarray, ends: list[bool], action: str = "DOWNRIGHTFIRE", context: int = 1) -> np.ndarray:
    """The drawing of a dream that is all true."""
    steps = len(frames)
    reward, probability = np.full(steps, 1.0), np.full(steps, 0.25)
    actions = np.zeros(steps, int)
    seen = Dream(
        Views(frames, frames, frames), None, actions, reward, np.array(ends), -reward / 2, probability, context
    )
    return pictures.dream_frames(seen, [action])


def test_mp4_reads_back_with_padded_even_size(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    frames = gradient(7, 33, 47)
    written = pictures.write_video(tmp_path / "folder" / "film.mp4", frames, fps=10)
    assert written == tmp_path / "folder" / "film.mp4"
    read = imageio.imread(written, plugin="FFMPEG")
    assert read.shape == (7, 34, 48, 3)
    assert np.abs(read[:, :33, :47].astype(int) - frames).mean() < 12  # lossy, but the same pictures
    assert imageio.immeta(written, plugin="FFMPEG")["fps"] == 10
    assert imageio.immeta(written, plugin="FFMPEG")["codec"] == "h264"
    assert imageio.immeta(written, plugin="FFMPEG")["pix_fmt"].startswith("yuv420p")
    assert [path.name for path in written.parent.iterdir()] == ["film.mp4"]


def test_gif_reads_back(tmp_path: Path) -> None:
    written = pictures.write_video(tmp_path / "film.gif", gradient(5, 32, 48), fps=10)
    assert imageio.imread(written, plugin="pillow", index=None).shape == (5, 32, 48, 3)
    assert imageio.immeta(written, plugin="pillow")["duration"] == 100


def test_without_ffmpeg_a_gif_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    written = pictures.write_video(tmp_path / "film.mp4", gradient(3, 16, 16))
    assert written == tmp_path / "film.gif"
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize("room", [0, 2000, 20_000])
def test_a_disk_that_fills_up_leaves_the_old_file_alone(suffix: str, room: int, tmp_path: Path) -> None:
    """Whether ffmpeg fails at once, on the way, or as it puts the table of contents in front."""
    pytest.importorskip("imageio_ffmpeg")
    path = pictures.write_video(tmp_path / f"film{suffix}", gradient(2, 16, 16))
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match=r"ffmpeg could|File too large"):
            pictures.write_video(path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_unsuitable_videos_and_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.mp4 or \.gif"):
        pictures.write_video(tmp_path / "film.avi", gradient(2, 16, 16))
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        pictures.write_image(tmp_path / "picture.jpg", gradient(1, 4, 4)[0])
    for frames in (gradient(2, 16, 16).astype(np.float32), gradient(2, 16, 16)[0], gradient(2, 16, 16)[:0]):
        with pytest.raises(ValueError, match="must be"):
            pictures.write_video(tmp_path / "film.mp4", frames)


def test_png_keeps_rgb_order(tmp_path: Path) -> None:
    image = gradient(1, 9, 5)[0]
    np.testing.assert_array_equal(imageio.imread(pictures.write_image(tmp_path / "picture.png", image)), image)


@pytest.mark.parametrize(("size", "factor"), [(64, 4), (32, 8), (300, 1)])
def test_dream_frames_hold_the_enlarged_panels(size: int, factor: int) -> None:
    frames = gradient(3, size, size)
    canvas = dream(frames, [False] * 3)
    assert canvas.dtype == np.uint8
    assert canvas.shape[0] == 3 and canvas.shape[2] == 3 * (size * factor + pictures.GAP) + pictures.GAP
    top, left = pictures.HEADER_PIXELS, 2 * pictures.GAP + size * factor  # the second panel
    panel = canvas[:, top : top + size * factor, left : left + size * factor]
    np.testing.assert_array_equal(panel[:, ::factor, ::factor], frames)


def test_dream_frames_mark_the_real_end_in_red() -> None:
    still = np.repeat(gradient(1, 64, 64), 3, axis=0)
    canvas = dream(still, [False, True, False])
    has_frame = (canvas[:, 0] == pictures.END).all(axis=(1, 2))
    assert has_frame.tolist() == [False, True, False]


def test_dream_frames_tell_context_from_dream() -> None:
    still = np.zeros((4, 64, 64, 3), np.uint8)
    canvas = dream(still, [False] * 4, context=2)
    # The word "dream" adds to the coloured pixels of the probability bar, which is the same in every frame.
    coloured = (canvas == pictures.DREAM).all(axis=-1).sum(axis=(1, 2))
    assert coloured[0] == coloured[1] < coloured[2] == coloured[3]


def test_dream_frames_never_cut_text_off() -> None:
    frames = gradient(1, 171, 171)  # the narrowest panels that are not enlarged
    canvas = dream(frames, [False], action="an action with a very long name " * 4)[0]
    footer = canvas[-pictures.FOOTER_LINES * pictures.FOOTER_LINE_PIXELS :]
    assert (footer[:, -pictures.GAP :] == pictures.BACKGROUND).all()
    assert (footer[-pictures.GAP :] == pictures.BACKGROUND).all()


def test_reconstruction_grid_shows_at_most_eight_pairs() -> None:
    real = gradient(10, 64, 64)
    grid = pictures.reconstruction_grid(real, 255 - real)
    assert grid.shape == (2 * 128 + pictures.GAP, 8 * 128 + 7 * pictures.GAP, 3)
    np.testing.assert_array_equal(grid[:128:2, :128:2], real[0])
    np.testing.assert_array_equal(grid[128 + pictures.GAP :: 2, -128::2], 255 - real[7])
    assert pictures.reconstruction_grid(real[:1], real[:1]).shape == (2 * 128 + pictures.GAP, 128, 3)

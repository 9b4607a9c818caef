"""Videos and pictures can be read back, and show what they should."""

from __future__ import annotations

import builtins
import resource
import sys
from pathlib import Path
from typing import Any

import cv2
import imageio.v3 as imageio
import matplotlib.figure
import numpy as np
import pytest
from matplotlib.axes import Axes

from stormlit.analysis import pictures
from stormlit.analysis.dream import Dream, Views
from stormlit.analysis.evaluate import Evaluation
from stormlit.analysis.pictures import dream_picture
from stormlit.analysis.plots import plot_returns
from stormlit.cli import main
from stormlit.data import Episode
from stormlit.errors import ConfigError
from training import SMALL


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


def test_without_ffmpeg_a_gif_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    written = pictures.write_video(tmp_path / "film.mp4", gradient(5, 32, 48), fps=10)
    assert list(tmp_path.iterdir()) == [written] == [tmp_path / "film.gif"]
    assert imageio.imread(written, plugin="pillow", index=None).shape == (5, 32, 48, 3)
    assert imageio.immeta(written, plugin="pillow")["duration"] == 100


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


# ---- The end of a run as pictures: its returns over environment steps, and its last dream


def evaluation(policy: str, *returns: float) -> Evaluation:
    episodes = [Episode(0, index, value, 10, False, 0.0) for index, value in enumerate(returns)]
    return Evaluation(game="Catch", policy=policy, episodes=episodes)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every figure that is saved."""
    axes: list[Axes] = []
    save = matplotlib.figure.Figure.savefig

    def saved(figure: matplotlib.figure.Figure, *arguments: Any, **options: Any) -> None:
        axes.extend(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    return axes


def test_episodes_their_mean_random_play_the_best_constant_and_the_agent(tmp_path: Path, drawn: list[Axes]) -> None:
    results = [evaluation("agent", 4, 6), evaluation("random", 1), evaluation("a", 2), evaluation("b", 3)]
    earlier = [(40, 1.0), (80, 4.0)]
    plot_returns(tmp_path / "returns.png", 100, [(10, 0.0), (20, 2.0)], results, earlier)
    image = cv2.imread(str(tmp_path / "returns.png"))
    assert image is not None and image.std() > 0
    [axes] = drawn
    episodes, mean, chance, constant, way, agent = axes.lines[:6]
    assert episodes.get_xydata().tolist() == [[10, 0], [20, 2]] and mean.get_xydata().tolist() == [[10, 0], [20, 1]]
    assert list(chance.get_ydata()) == [1, 1] and list(constant.get_ydata()) == [3, 3]
    assert way.get_xydata().tolist() == [[40, 1], [80, 4], [100, 5]]
    assert agent.get_xydata().tolist() == [[100, 5]]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "episodes of the training",
        "mean of the last 5",
        "random: 1",
        "b: 3",
        "agent, evaluated on the way",
        "agent, 2 episodes at the end: 5 +- 1",
    ]


def test_a_run_without_an_episode_or_a_baseline_is_drawn(tmp_path: Path, drawn: list[Axes]) -> None:
    plot_returns(tmp_path / "returns.png", 100, [], [evaluation("agent", 4)])
    assert len(drawn[0].figure.legends[0].get_texts()) == 1


def test_a_dream_shows_its_context_and_steps_up_to_its_last() -> None:
    brightness = np.arange(1, 7, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    zeros = np.zeros(6, np.float32)
    dream = Dream(
        Views(brightness, 8 * brightness, 40 * brightness), None, zeros.astype(int), zeros, zeros > 0, zeros, zeros, 3
    )
    picture = dream_picture(dream)
    tile = (picture.shape[1] - 124) // 4
    rows = [28 + 60, 28 + tile + 60, 28 + 2 * tile + 60]
    # The context's last step, of index 2, and the three that were dreamt.
    assert [picture[row, 124 + column * tile + 60].tolist() for row in rows for column in (0, 3)] == [
        [3] * 3, [6] * 3, [24] * 3, [48] * 3, [120] * 3, [240] * 3,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_report_names_both_and_a_resumed_run_draws_every_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: list[Axes]
) -> None:
    words = [f"run.dir={tmp_path}", "loop.env_steps=72"]
    assert main(["train", *SMALL, f"run.dir={tmp_path}", "run.name=run"]) == 0
    assert main(["resume", "run", *words]) == 0
    assert main(["train", *SMALL, *words, "run.name=unbroken"]) == 0
    told = capsys.readouterr().out.splitlines()
    [first] = [index for index, line in enumerate(told) if line.startswith("look first") and "unbroken" in line]
    media = tmp_path / "unbroken" / "media"
    assert told[first].endswith(str(media / "returns.png"))
    assert told[first + 1].endswith(str(media / "dream-000000072.png"))
    resumed, unbroken = drawn[1], drawn[2]
    assert resumed.lines[0].get_xydata().tolist() == unbroken.lines[0].get_xydata().tolist()
    assert len(unbroken.lines[0].get_xdata()) == 10  # episodes of 7 steps


@pytest.mark.slow
def test_a_plot_that_fails_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def broken(name: str, *given: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ValueError("a matplotlibrc of its own")
        return imported(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert main(["train", *SMALL, f"run.dir={tmp_path}", "run.name=run"]) == 0
    told = capsys.readouterr()
    assert "the plot of the returns was not drawn: ValueError: a matplotlibrc of its own" in told.err
    assert "returns.png" not in told.out and "dream-000000048.png" in told.out

"""Dreams as files: videos and reconstruction grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stormlit.runs.media import dream_frames, reconstruction_grid, write_image, write_video
from stormlit.storm.dream import Dream

FRAMES_PER_SECOND = 8  # an agent acts 15 times a second; half of that lets a person read along


def write_dream_video(path: Path, dreams: Sequence[Dream], action_meanings: Sequence[str]) -> Path:
    """One video with the dreams after one another; returns the path really written (a .gif where ffmpeg is missing)."""
    frames = [
        dream_frames(
            seen.real,
            seen.reconstructed,
            seen.imagined,
            [action_meanings[action] for action in seen.action],
            seen.reward,
            seen.predicted_reward,
            seen.end_probability,
            seen.terminated,
            seen.context_length,
        )
        for seen in dreams
    ]
    return write_video(path, np.concatenate(frames), fps=FRAMES_PER_SECOND)


def write_reconstruction_grid(path: Path, seen: Dream) -> Path:
    """Eight frames of a dream's window, spread evenly, above their reconstructions."""
    chosen = np.linspace(0, len(seen.real) - 1, num=min(8, len(seen.real))).round().astype(int)
    return write_image(path, reconstruction_grid(seen.real[chosen], seen.reconstructed[chosen]))

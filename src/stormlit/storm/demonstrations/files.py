"""Reading a demonstration in either format."""

from __future__ import annotations

from pathlib import Path

from stormlit.errors import DemonstrationError
from stormlit.storm.demonstrations.data import Demonstration, Timing, check_file
from stormlit.storm.demonstrations.npz import read_npz
from stormlit.storm.demonstrations.official_pickle import read_official_pickle


def read_demonstration(file: Path, timing: Timing = "aligned") -> Demonstration:
    """Read stormlit's own format or an official pickle, told apart by the first bytes.

    timing: "as_published" leaves each frame of a pickle beside the action that led to it; see ``read_official_pickle``.
    Raises ``DemonstrationError`` with one sentence that names the file, also for a ``.npz`` "as_published".
    """
    if not is_npz(file):
        return read_official_pickle(file, timing)
    if timing == "as_published":
        # Converted pickles have lost the frames that are missing to put them back; recordings never had that timing.
        raise DemonstrationError(
            f"{file} is a stormlit .npz, whose actions are beside the frames they were taken at: expected "
            "demonstrations.timing=aligned, as_published is for the official pickles alone"
        )
    return read_npz(file)


def is_npz(file: Path) -> bool:
    """Whether the file begins as a zip archive does; raises ``DemonstrationError`` when it cannot be read."""
    check_file(file)
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"PK"
    except OSError as error:
        raise DemonstrationError(f"the demonstration {file} cannot be read: {error.strerror}") from error

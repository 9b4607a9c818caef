"""Reading a demonstration in either format."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stormlit.demonstrations.data import Demonstration, check_file
from stormlit.demonstrations.npz import read_npz
from stormlit.demonstrations.official_pickle import read_official_pickle
from stormlit.errors import DemonstrationError


def read_demonstration(file: Path) -> Demonstration:
    """Read stormlit's own format or an official pickle, told apart by the first bytes.

    Raises ``DemonstrationError`` with one sentence that names the file.
    """
    return read_npz(file) if is_npz(file) else read_official_pickle(file)


def is_npz(file: Path) -> bool:
    """Whether the file begins as a zip archive does; raises ``DemonstrationError`` when it cannot be read."""
    check_file(file)
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"PK"
    except OSError as error:
        raise DemonstrationError(f"the demonstration {file} cannot be read: {error.strerror}") from error


def sha256(file: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

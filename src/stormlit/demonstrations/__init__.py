"""Recorded play that is mixed into training (STORM section 5.3): files, recording, and the buffer it is drawn from."""

from __future__ import annotations

from stormlit.demonstrations.buffer import DemonstrationBuffer, check_fits
from stormlit.demonstrations.files import Demonstration, Origin, read_demonstration, write_npz
from stormlit.demonstrations.recording import origin_of, record

__all__ = [
    "Demonstration",
    "DemonstrationBuffer",
    "Origin",
    "check_fits",
    "origin_of",
    "read_demonstration",
    "record",
    "write_npz",
]

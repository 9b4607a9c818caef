"""Demonstrations as files: stormlit's own ``.npz``, described in docs/demonstrations.md, and the official pickles.

Nothing that a file says is believed: it is read without unpickling, and its sizes are checked before memory is taken.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from stormlit.demonstrations.data import (
    LARGEST_BYTES,
    SHAPES,
    Demonstration,
    Origin,
    Timing,
    check_arrays,
    check_names,
    shortened,
)
from stormlit.demonstrations.official_pickle import read_official_pickle
from stormlit.errors import DemonstrationError
from stormlit.files import npz_headers, replacing

FORMAT = 1
MOST_METADATA = 2**16  # bytes


def read_demonstration(file: Path, timing: Timing = "aligned") -> Demonstration:
    """Read stormlit's own format or an official pickle, told apart by the first bytes.

    timing: "as_published" leaves each frame of a pickle beside the action that led to it; see ``read_official_pickle``.
    Raises ``DemonstrationError`` with one sentence that names the file, also for a ``.npz`` "as_published".
    """
    try:
        return _read(file, timing)
    except OSError as error:
        raise DemonstrationError(f"the demonstration {file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged file makes the readers raise
        told = str(error) if isinstance(error, ValueError) else f"it is damaged ({type(error).__name__}: {error})"
        raise DemonstrationError(f"{file} is refused: {shortened(told, 280)}") from error


def write_npz(demonstration: Demonstration, file: Path) -> None:
    """Write a demonstration, compressed; raises ``DemonstrationError`` when the file cannot be written."""
    arrays = {name: getattr(demonstration, name) for name in SHAPES}
    try:
        if file.suffix != ".npz":
            raise ValueError("expected the name of a .npz file to write")
        check_arrays(arrays)
        metadata = json.dumps(dataclasses.asdict(demonstration.origin), allow_nan=False).encode()
        arrays = {"format": np.array(FORMAT, np.int64), "metadata": np.frombuffer(metadata, np.uint8), **arrays}
        with replacing(file) as opened:
            np.savez_compressed(opened, allow_pickle=False, **arrays)
    except (OSError, ValueError) as error:
        raise DemonstrationError(f"{file} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _read(file: Path, timing: Timing) -> Demonstration:
    size = file.stat().st_size
    if not file.is_file():
        raise ValueError("it is not a file; expected a demonstration, .npz or .pkl")
    if size > LARGEST_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than the {LARGEST_BYTES // 2**30} GiB that are read")
    with file.open("rb") as opened:
        is_npz = opened.read(2) == b"PK"
    if not is_npz:
        return read_official_pickle(file.read_bytes(), timing)
    if timing == "as_published":
        # Converted pickles have lost the frames that are missing to put them back; recordings never had that timing.
        raise ValueError(
            "it is a stormlit .npz, whose actions are beside the frames they were taken at: expected "
            "demonstrations.timing=aligned, as_published is for the official pickles alone"
        )
    arrays = _read_arrays(file)
    origin = _origin(arrays.pop("metadata").tobytes())
    check_arrays(arrays)
    return Demonstration(**arrays, origin=origin)


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    headers = npz_headers(file, LARGEST_BYTES)
    if headers.pop("format", None) != ((), np.dtype("int64")):
        raise ValueError("it is not a stormlit demonstration, which has a number 'format'")
    with np.load(file, allow_pickle=False) as archive:
        written = int(archive["format"])
        if not 1 <= written <= FORMAT:
            raise ValueError(f"it has format {written}, this stormlit reads 1 to {FORMAT}: upgrade stormlit")
        check_names(headers, [*SHAPES, "metadata"])
        shape, dtype = headers["metadata"]
        if math.prod(shape) * dtype.itemsize > MOST_METADATA:
            raise ValueError(f"'metadata' has more than {MOST_METADATA:,} bytes")
        return {name: archive[name] for name in headers}


def _origin(metadata: bytes) -> Origin:
    kinds = {"env_id": str, "num_actions": int, "action_meanings": list, "env": dict, "policy": str}
    try:
        values: dict[str, Any] = json.loads(metadata)
        origin = Origin(**values)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"'metadata' is not JSON text with the entries {', '.join(kinds)}") from error
    for name, kind in kinds.items():
        value = getattr(origin, name)
        if value is not None and type(value) is not kind:
            raise ValueError(f"'{name}' of the metadata is {type(value).__name__}, not {kind.__name__}")
    if not all(isinstance(meaning, str) for meaning in origin.action_meanings or []):
        raise ValueError("'action_meanings' of the metadata are not all text")
    return origin

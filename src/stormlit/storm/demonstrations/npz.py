"""stormlit's own format, described in docs/demonstrations.md: a ``.npz`` of plain arrays, read without unpickling."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from stormlit.errors import DemonstrationError
from stormlit.files import replacing
from stormlit.storm.demonstrations.data import (
    SHAPES,
    Demonstration,
    Origin,
    check_arrays,
    check_file,
    check_names,
    check_size,
    shortened,
)

FORMAT = 1
MOST_METADATA = 2**16  # bytes
LARGEST_RATIO = 1100  # deflate cannot make less than 1/1032 of anything


def write_npz(demonstration: Demonstration, file: Path) -> None:
    """Write a demonstration, compressed; raises ``DemonstrationError`` when the file cannot be written."""
    metadata = json.dumps(dataclasses.asdict(demonstration.origin)).encode()
    arrays = {name: getattr(demonstration, name) for name in SHAPES}
    check_arrays(file, arrays)
    if file.suffix != ".npz":
        raise DemonstrationError(f"{file}: expected the name of a .npz file to write")
    try:
        with replacing(file) as opened:
            np.savez_compressed(
                opened,
                allow_pickle=False,
                format=np.int64(FORMAT),
                metadata=np.frombuffer(metadata, np.uint8),
                **arrays,
            )
    except OSError as error:
        raise DemonstrationError(f"{file} cannot be written: {error.strerror}") from error


def read_npz(file: Path) -> Demonstration:
    """Read a demonstration; what the file claims is checked before memory is taken for it.

    Raises ``DemonstrationError`` with one sentence that names the file and the array.
    """
    size = check_file(file)
    try:
        with zipfile.ZipFile(file) as archive:
            arrays = _read_arrays(archive, file, size)
    except DemonstrationError:
        raise
    except Exception as error:  # whatever a damaged zip file or header makes the readers raise
        raise DemonstrationError(f"{file} is damaged: {shortened(error) or type(error).__name__}") from error
    origin = _read_origin(file, arrays.pop("metadata"))
    check_arrays(file, arrays)
    return Demonstration(**arrays, origin=origin)


def _read_arrays(archive: zipfile.ZipFile, file: Path, size: int) -> dict[str, np.ndarray]:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise DemonstrationError(f"{file} is damaged: it holds an array twice")
    if "format" not in members:
        raise DemonstrationError(f"{file} is not a stormlit demonstration: it has no array 'format'")
    written = int(_read_array(archive, file, "format", members.pop("format"), size))
    if not 1 <= written <= FORMAT:
        raise DemonstrationError(f"{file} has format {written}, this stormlit reads 1 to {FORMAT}: upgrade stormlit")
    check_names(file, list(members), [*SHAPES, "metadata"])
    if members["metadata"].file_size > MOST_METADATA:
        raise DemonstrationError(f"{file}: 'metadata' has more than {MOST_METADATA:,} bytes")
    return {name: _read_array(archive, file, name, member, size) for name, member in members.items()}


def _read_array(archive: zipfile.ZipFile, file: Path, name: str, member: zipfile.ZipInfo, file_size: int) -> np.ndarray:
    if member.file_size > LARGEST_RATIO * file_size:
        raise DemonstrationError(f"{file} claims {member.file_size:,} bytes of '{name}' in a file of {file_size:,}")
    with archive.open(member) as opened:
        shape, dtype = _read_header(opened)
        if dtype.hasobject or dtype.kind not in "biuf":
            raise DemonstrationError(f"{file}: '{name}' holds {shortened(dtype)}, expected plain numbers")
        check_size(file, name, shape, dtype.itemsize, member.file_size - opened.tell())
    with archive.open(member) as opened:
        return np.lib.format.read_array(opened, allow_pickle=False)


def _read_header(opened: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(opened)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(opened)
    return shape, dtype


def _read_origin(file: Path, metadata: np.ndarray) -> Origin:
    try:
        values = json.loads(metadata.tobytes())
        origin = Origin(**values)
    except (ValueError, TypeError, RecursionError) as error:
        known = ", ".join(field.name for field in dataclasses.fields(Origin))
        raise DemonstrationError(f"{file}: 'metadata' is not JSON text with the entries {known}") from error
    kinds = {"env_id": str, "num_actions": int, "action_meanings": list, "env": dict, "policy": str}
    for name, kind in kinds.items():
        value = getattr(origin, name)
        if value is not None and type(value) is not kind:
            raise DemonstrationError(f"{file}: '{name}' of the metadata is {type(value).__name__}, not {kind.__name__}")
    if not all(isinstance(meaning, str) for meaning in origin.action_meanings or []):
        raise DemonstrationError(f"{file}: 'action_meanings' of the metadata are not all text")
    return origin

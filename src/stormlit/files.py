"""Files that are there whole or not at all: replaced in one step, synced, checked by SHA-256; and what is in them.

Also the classes in Python files of the user's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stormlit.errors import CheckpointError, ConfigError, nearest

LARGEST_RATIO = 1100  # deflate cannot make less than 1/1032 of anything


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces the one at ``path`` in one step once the block has succeeded.

    A crash leaves the old content or the new, never a part; a block that fails leaves the old one and nothing else.
    When it returns the new content is on the disk, under its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is durable only then."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace the content of the file at ``path`` in one step."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Numbers that are not finite, for which JSON has no word, become null."""
    write_atomically(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; raises ``CheckpointError`` naming the file when it is not one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not readable JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it does not hold a mapping")
    return value


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def npz_headers(path: Path, most: int | None = None) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every array in an ``.npz``, known to be true before ``np.load`` takes memory for one.

    most: bytes an array may have.  Raises ``ValueError`` for anything but plain numbers, for an array that is there
    twice, and for a size that its bytes do not make up; also raises what ``zipfile`` does for a damaged archive.
    """
    headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name, size = member.filename.removesuffix(".npy"), member.file_size
            if name in headers:
                raise ValueError(f"it holds an array twice: '{name}'")
            if size > min(LARGEST_RATIO * path.stat().st_size, most or size):
                raise ValueError(f"it claims {size:,} bytes of '{name}', more than are read or can be in it")
            with archive.open(member) as file:
                is_old = np.lib.format.read_magic(file) == (1, 0)
                read = np.lib.format.read_array_header_1_0 if is_old else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                if dtype.hasobject or dtype.kind not in "biuf":
                    raise ValueError(f"'{name}' holds {dtype}, expected plain numbers")
                check_claim(name, shape, dtype, size - file.tell())
            headers[name] = shape, dtype
    return headers


def check_claim(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], held: int) -> None:
    """Raise ``ValueError`` unless an array of this shape takes the ``held`` bytes that are there for it."""
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != held:
        raise ValueError(f"it claims '{name}' of shape {shape}, {claimed:,} bytes, but holds {held:,}")


def look_in_working_directory() -> None:
    """Let modules of the working directory be imported, which a console script's path does not have."""
    with contextlib.suppress(OSError):  # it may have been deleted
        sys.path += [] if os.getcwd() in sys.path else [os.getcwd()]


def class_in_module(module_name: str, name: str) -> type:
    """A class of a module that can be imported from the Python path or from the working directory.

    Raises ``ConfigError`` when the module is not there or fails, or has no such class.
    """
    look_in_working_directory()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"there is no module '{module_name}' in {os.getcwd()} or on the Python path"
        else:
            reason = f"{module_name} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(reason) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [each for each, cls in vars(module).items() if isinstance(cls, type) and cls.__module__ == module_name]
        raise ConfigError(f"{module_name} has no class '{name}'{nearest(name, own)}; it has {', '.join(own) or 'none'}")
    return found

"""Demonstrations as files: stormlit's own ``.npz``, described in docs/demonstrations.md, and STORM's published pickles.

Nothing that a file says is believed: it is read without unpickling, and its sizes are checked before memory is taken.

A pickle is a program for a small machine that can import and call what it likes. The machine here knows the
instructions that arrays are written with, and can do neither: it writes down which of NumPy's names a program wants
called with what, and an array is then made of the bytes in the file, where that is what NumPy itself writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickletools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stormlit.errors import DemonstrationError, nearest
from stormlit.files import check_claim, npz_headers, replacing

Timing = Literal["aligned", "as_published"]
"""Of an official pickle: see ``read_official_pickle``."""

LARGEST_BYTES = 4 * 2**30
"""Bytes of a file and of an array that are read at most: 350,000 frames of 64 x 64."""

FORMAT = 1
MOST_METADATA = 2**16  # bytes

ARRAYS = ["obs", "action", "reward", "done", "life_loss"]
MOST_INSTRUCTIONS = 10_000  # the published ones have 250
DTYPES = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# Instructions that push a value of their own, which ``pickletools`` reads; sizes beyond the file's it refuses.
_VALUES = """
BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8
BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
"""
VALUES = frozenset(_VALUES.split())
NAMES = {
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "_reconstruct",
    "numpy._core.multiarray._reconstruct": "_reconstruct",
    "numpy.core.numeric._frombuffer": "_frombuffer",
    "numpy._core.numeric._frombuffer": "_frombuffer",
}


@dataclass(slots=True)
class Origin:
    """Where a demonstration comes from; None is unknown.

    env_id: Gymnasium id.  num_actions, action_meanings: of its action space, if discrete.  env: the section
    ``env`` of the configuration it was recorded with, which tells how frames were made.  policy: "random", or the run
    and checkpoint that played.
    """

    env_id: str | None = None
    num_actions: int | None = None
    action_meanings: list[str] | None = None
    env: dict[str, Any] | None = None
    policy: str | None = None


@dataclass(slots=True)
class Demonstration:
    """T consecutive steps, of one or more episodes; the last one need not be complete.

    obs: (T, Y, X, C) uint8; (T, V) float32 of vectors; of both (T, B) uint8, the bytes of each step's V numbers and
    then its pixels.  action: (T,) int64, from 0; or (T, dims) int64, or float32
    in [-1, 1].  reward: (T,) float32, untransformed.
    terminated, truncated: (T,) bool, the episode ended, or was cut.  life_lost: (T,) bool.
    ``reward[t]`` and the flags follow ``action[t]``, taken at ``obs[t]``; the frame an episode ends on is not stored.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    life_lost: np.ndarray
    origin: Origin = field(default_factory=Origin)

    def __len__(self) -> int:
        return len(self.action)

    @property
    def is_first(self) -> np.ndarray:
        """(T,) bool, the step begins an episode, or the demonstration."""
        return np.concatenate([[True], (self.terminated | self.truncated)[:-1]])


SHAPES: Mapping[str, tuple[str, str]] = {
    "obs": ("uint8", "(T, Y, X, C)"),
    "action": ("int64", "(T,)"),
    "reward": ("float32", "(T,)"),
    "terminated": ("bool", "(T,)"),
    "truncated": ("bool", "(T,)"),
    "life_lost": ("bool", "(T,)"),
}
"""dtype and shape of each array of a demonstration."""


def check_names(found: Iterable[str], expected: list[str]) -> None:
    """Raise ``ValueError`` naming the first array that is unknown or missing."""
    for name in found:
        if name not in expected:
            guess = nearest(name[:80], expected)
            raise ValueError(
                f"it has an array '{shortened(name)}' that is not known{guess}; expected {', '.join(expected)}"
            )
    for name in expected:
        if name not in found:
            raise ValueError(f"it has no array '{name}'; expected {', '.join(expected)}")


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ``ValueError`` for the first array of a wrong type, shape, length or value."""
    obs, action, reward = arrays["obs"], arrays["action"], arrays["reward"]
    for name, (dtype, shape) in SHAPES.items():
        array = arrays[name]
        if name == "action" and array.ndim == 2 and array.shape[1] and array.dtype in ("int64", "float32"):
            shape, dtype = "(T, dims)", str(array.dtype)  # of several parts
        if name == "obs" and array.ndim == 2 and array.dtype in ("uint8", "float32"):
            shape, dtype = "(T, dims)", str(array.dtype)  # vectors, or an image with vectors
        if array.dtype != dtype or array.ndim != len(shape.split(", ")):
            raise ValueError(f"'{name}' is {array.dtype} of shape {array.shape}, expected {dtype} of shape {shape}")
        if len(array) != len(obs):
            raise ValueError(f"'{name}' has {len(array)} steps where 'obs' has {len(obs)}")
    if 0 in obs.shape:
        raise ValueError(f"'obs' has shape {obs.shape}, expected at least one step of frames that are not empty")
    bounded = action.dtype == np.float32
    for name, bad, expected in (
        ("action", ~(np.abs(action) <= 1) if bounded else action < 0, "-1 to 1" if bounded else "0 or more"),
        ("reward", ~np.isfinite(reward), "a finite number"),
        ("obs", ~np.isfinite(obs) if obs.dtype == np.float32 else np.zeros(0, bool), "finite numbers"),
    ):
        if bad.any():
            step = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
            raise ValueError(f"'{name}' is {arrays[name][step]} at step {step}, expected {expected}")


def shortened(value: object, most: int = 80) -> str:
    """What a file says, as part of one sentence that can be shown in a terminal."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value)[: 4 * most])
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


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


def read_official_pickle(content: bytes, timing: Timing) -> Demonstration:
    """Read a published trajectory of T steps, whose ``done`` becomes ``terminated``.

    Its ``obs[t]`` is the frame that ``action[t]`` led to (scores and lives change in it). "aligned" moves each action,
    with what followed it, to the frame before; the first one had none, so T - 1 steps are left, fewer by one for each
    end inside. "as_published" leaves all T as they are, as the released code does (weipu-zhang/STORM,
    replay_buffer.py: ``load_trajectory``).

    Raises ``ValueError`` with what is wrong, and whatever else damaged bytes lead to.
    """
    found = _build(content)
    if type(found) is not dict:
        raise ValueError(f"it holds {_kind(found)}, expected a dictionary of {', '.join(ARRAYS)}")
    check_names(list(found), ARRAYS)
    arrays = {name: _array(name, found[name]) for name in ARRAYS}
    for name, kinds, expected in (("action", "iu", "whole numbers"), ("reward", "iuf", "numbers")):
        if arrays[name].dtype.kind not in kinds:
            raise ValueError(f"'{name}' is {arrays[name].dtype}, expected {expected}")
    with np.errstate(over="ignore"):  # refused as not finite
        converted: dict[str, Any] = {
            "obs": arrays["obs"],
            "action": arrays["action"].astype(np.int64),
            "reward": arrays["reward"].astype(np.float32),
            "terminated": arrays["done"],
            "truncated": np.zeros(arrays["done"].shape, dtype=bool),
            "life_lost": arrays["life_loss"],
        }
    check_arrays(converted)
    if timing == "as_published":
        return Demonstration(**converted)
    # The frame an episode ended on was not acted on; the next episode's first frame is not there.
    acted_on = ~arrays["done"][:-1]
    aligned = {name: (array[:-1] if name == "obs" else array[1:])[acted_on] for name, array in converted.items()}
    check_arrays(aligned)
    return Demonstration(**aligned)


@dataclass(slots=True, eq=False, repr=False)
class _Made:
    """What a program wants made: a name of NumPy's, what it is called with, and the state it is given then."""

    name: str
    arguments: Any = None
    state: Any = None


def _build(content: bytes) -> Any:
    """The object that a pickle describes, of plain values and ``_Made``; raises ``ValueError`` for anything else."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (instruction, argument, _) in enumerate(pickletools.genops(content)):
        if count >= MOST_INSTRUCTIONS:
            raise ValueError(f"it is a pickle of more than {MOST_INSTRUCTIONS:,} instructions")
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack[-1]
            case "MARK":
                marks.append(len(stack))
            case name if name in VALUES:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "EMPTY_DICT" | "EMPTY_LIST" as name:
                stack.append({} if name == "EMPTY_DICT" else [])
            case "APPEND" | "APPENDS" as name:  # lists have no place in a demonstration, whatever is in them
                _taken(stack, marks.pop() if name == "APPENDS" else len(stack) - 1)
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                start = marks.pop() if name == "TUPLE" else len(stack) - int(name[-1])
                stack.append(tuple(_taken(stack, start)))
            case "SETITEM" | "SETITEMS" as name:
                items = _taken(stack, marks.pop() if name == "SETITEMS" else len(stack) - 2)
                if type(stack[-1]) is not dict or not all(type(key) is str for key in items[::2]):
                    raise _refusal("it has names that are not text")  # which can take forever to hash
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(_named(".".join(_taken(stack, len(stack) - 2))))
            case "REDUCE":
                made, arguments = _taken(stack, len(stack) - 2)
                if type(made) is not _Made or made.arguments is not None:
                    raise _refusal(f"it calls {_kind(made)}")
                stack.append(_Made(made.name, arguments))
            case "BUILD":
                made, state = stack[-2], stack.pop()
                if type(made) is not _Made or made.arguments is None or made.state is not None:
                    raise _refusal(f"it changes {_kind(made)}")
                made.state = state
            case name:
                raise _refusal(f"it has the instruction {name}")
    raise ValueError("it is a pickle without an end")


def _taken(stack: list[Any], start: int) -> list[Any]:
    """What is on the stack from ``start`` on, taken off."""
    if not 0 <= start <= len(stack):
        raise ValueError("it is a damaged pickle")
    taken = stack[start:]
    del stack[start:]
    return taken


def _refusal(what: str) -> ValueError:
    return ValueError(f"{what}; a pickle may hold a dictionary of NumPy arrays alone, and nothing in it was run")


def _named(name: str) -> _Made:
    if name not in NAMES:
        raise _refusal(f"it names {shortened(name)}")
    return _Made(NAMES[name])


def _array(name: str, value: Any) -> np.ndarray:
    """The array that ``value`` describes in one of the two ways that NumPy has of writing one."""
    match value:
        case _Made("_reconstruct", (_Made("ndarray", None), (0,), b"b"), (1, shape, dtype, bool(columns), content)):
            pass
        case _Made("_frombuffer", (content, dtype, shape, "C" | "F" as order), None):
            columns = order == "F"
        case _:
            raise ValueError(f"'{name}' is {_kind(value)}, expected an array of plain numbers as NumPy writes it")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"'{name}' is an array without a shape")
    if type(content) not in (bytes, bytearray):
        raise ValueError(f"'{name}' is an array in {_kind(content)}, expected bytes")
    plain = _dtype(name, dtype)
    check_claim(name, shape, plain, len(content))
    return np.frombuffer(content, plain).reshape(shape, order="F" if columns else "C")


def _dtype(name: str, value: Any) -> np.dtype[Any]:
    match value:
        case _Made(
            "dtype", (str(code), 0, 0 | 1), None | (3, "<" | ">" | "|" | "=", None, None, None, -1, -1, 0) as state
        ) if code in DTYPES:
            return np.dtype(code if state is None else state[1] + code)
        case _Made("dtype", (str(code), *_)):
            raise ValueError(f"'{name}' is an array of '{shortened(code)}', expected plain numbers")
    raise ValueError(f"'{name}' is an array of {_kind(value)}, expected plain numbers")


def _kind(value: object) -> str:
    """The type of what a pickle left, never its content, which may be without end."""
    if type(value) is _Made:
        return f"NumPy's {value.name}" if value.arguments is None else f"what NumPy's {value.name} makes"
    return type(value).__name__

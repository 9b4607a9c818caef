"""The trajectories published with STORM: pickled dictionaries of NumPy arrays, read without executing anything.

A pickle is a program for a small machine that may call whatever it names. Here it can name five things, and gets
stand-ins for them that take nothing but what NumPy itself writes; arrays are built by this module, from bytes that are
there. Before it runs, the program is looked through for what costs time or memory without calling anything.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from stormlit.errors import DemonstrationError
from stormlit.storm.demonstrations.data import (
    Demonstration,
    Timing,
    check_arrays,
    check_file,
    check_names,
    check_size,
    shortened,
)

ARRAYS = ["obs", "action", "reward", "done", "life_loss"]
MOST_INSTRUCTIONS = 10_000  # the published ones have 250
_SHARED = """
GLOBAL STACK_GLOBAL REDUCE STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST EMPTY_DICT
"""
_OTHERS = """
PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
DICT SETITEM SETITEMS LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GET BINGET LONG_BINGET PUT BINPUT
LONG_BINPUT MEMOIZE INST OBJ NEWOBJ NEWOBJ_EX BUILD
"""
# Only what these make may be used twice: of shared tuples one can build a key that takes forever to hash. DUP and sets
# are missing for the same reason; GLOBAL and the like are let through to `find_class`, which names what it refuses.
SHARED = frozenset(_SHARED.split())
INSTRUCTIONS = SHARED | frozenset(_OTHERS.split())
DTYPES = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


def read_official_pickle(file: Path, timing: Timing) -> Demonstration:
    """Read a published trajectory of T steps, whose ``done`` becomes ``terminated``.

    Its ``obs[t]`` is the frame that ``action[t]`` led to (scores and lives change in it). "aligned" moves each action,
    with what followed it, to the frame before; the first one had none, so T - 1 steps are left, fewer by one for each
    end inside. "as_published" leaves all T as they are, as the released code does (weipu-zhang/STORM,
    replay_buffer.py: ``load_trajectory``).

    Raises ``DemonstrationError`` with one sentence that names the file and what it refuses in it.
    """
    check_file(file)
    try:
        content = file.read_bytes()
        _look_through(file, content)
        found = _ArrayUnpickler(file, content).load()
    except DemonstrationError:
        raise
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        raise DemonstrationError(
            f"{file} is neither a stormlit .npz nor a pickle of NumPy arrays: "
            f"{shortened(error) or type(error).__name__}"
        ) from error
    if type(found) is not dict or not all(type(name) is str for name in found):
        raise DemonstrationError(f"{file} holds {_named(found)}, expected a dictionary of {', '.join(ARRAYS)}")
    check_names(file, list(found), ARRAYS)
    arrays = {name: _array(file, name, found[name]) for name in ARRAYS}
    for name, kinds, expected in (("action", "iu", "whole numbers"), ("reward", "iuf", "numbers")):
        if arrays[name].dtype.kind not in kinds:
            raise DemonstrationError(f"{file}: '{name}' is {arrays[name].dtype}, expected {expected}")
    with np.errstate(over="ignore"):  # told as not finite
        converted: dict[str, Any] = {
            "obs": arrays["obs"],
            "action": arrays["action"].astype(np.int64),
            "reward": arrays["reward"].astype(np.float32),
            "terminated": arrays["done"],
            "truncated": np.zeros(arrays["done"].shape, dtype=bool),
            "life_lost": arrays["life_loss"],
        }
    check_arrays(file, converted)
    if timing == "as_published":
        return Demonstration(**converted)
    # The frame an episode ended on was not acted on; the next episode's first frame is not there.
    acted_on = ~arrays["done"][:-1]
    aligned = {name: (array[:-1] if name == "obs" else array[1:])[acted_on] for name, array in converted.items()}
    check_arrays(file, aligned)
    return Demonstration(**aligned)


def _look_through(file: Path, content: bytes) -> None:
    """Refuse what would take time or memory out of proportion; ``genops`` itself refuses sizes beyond the file's."""
    previous = ""
    places: dict[int, str] = {}  # of remembered objects, with the instruction that made them
    instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(content)
    for count, (instruction, argument, _) in enumerate(instructions):
        name = instruction.name
        if count >= MOST_INSTRUCTIONS:
            raise DemonstrationError(f"{file} is a pickle of more than {MOST_INSTRUCTIONS:,} instructions")
        if name not in INSTRUCTIONS:
            raise DemonstrationError(f"{file} is a pickle with the instruction {name}, which is refused")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(places) if argument is None else int(argument)
            if not 0 <= place < MOST_INSTRUCTIONS:
                raise DemonstrationError(f"{file} is a pickle that remembers an object as number {place}")
            places[place] = previous
        if name in ("GET", "BINGET", "LONG_BINGET") and places.get(int(argument), "") not in SHARED:
            raise DemonstrationError(f"{file} is a pickle that uses a tuple or a number twice, which is refused")
        if name == "FRAME" and argument > len(content):
            raise DemonstrationError(f"{file} is a truncated pickle: it claims a part of {argument:,} bytes")
        previous = name


class _ArrayUnpickler(pickle.Unpickler):
    """Knows stand-ins for what NumPy writes, and nothing else."""

    def __init__(self, file: Path, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.file = file
        core = {"_reconstruct": _Reconstruct(file), "_frombuffer": _FromBuffer(file)}
        self.known: dict[tuple[str, str], _StandIn] = {
            ("numpy", "ndarray"): _ArrayClass(file),
            ("numpy", "dtype"): _MakeDtype(file),
            ("numpy.core.multiarray", "_reconstruct"): core["_reconstruct"],
            ("numpy._core.multiarray", "_reconstruct"): core["_reconstruct"],
            ("numpy.core.numeric", "_frombuffer"): core["_frombuffer"],
            ("numpy._core.numeric", "_frombuffer"): core["_frombuffer"],
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise DemonstrationError(
                f"{self.file} names {shortened(f'{module}.{name}')}, which is refused: a pickle may hold NumPy arrays "
                "and plain values alone; nothing in it was run"
            )
        return self.known[module, name]


class _StandIn:
    """Holds nothing that a pickle could change."""

    __slots__ = ("_file",)

    def __init__(self, file: Path) -> None:
        self._file = file

    def refuse(self, what: str) -> NoReturn:
        raise DemonstrationError(f"{self._file} holds {what}, which is refused: expected arrays of plain numbers")

    def __setstate__(self, state: object) -> None:
        self.refuse("a changed NumPy function")


class _ArrayClass(_StandIn):
    """numpy.ndarray, which may only be handed to ``_reconstruct``."""

    __slots__ = ()


class _Reconstruct(_StandIn):
    """numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"): an empty array, whose state follows."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, typecode: object) -> _Array:
        if type(kind) is not _ArrayClass:
            self.refuse(f"an array of the class {_named(kind)}")
        if type(shape) is not tuple or shape != (0,) or typecode != b"b":
            self.refuse("an array that is made with a size")
        return _Array(self._file)


class _FromBuffer(_StandIn):
    """numpy.core.numeric._frombuffer(buffer, dtype, shape, order): how protocol 5 writes arrays."""

    __slots__ = ()

    def __call__(self, buffer: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array(self._file)
        if order not in ("C", "F") or type(buffer) not in (bytes, bytearray):
            self.refuse(f"an array in {_named(buffer)}")
        array.fill(shape, dtype, order == "F", buffer)
        return array


class _MakeDtype(_StandIn):
    """numpy.dtype("i8", False, True)."""

    __slots__ = ()

    def __call__(self, code: object, align: object = False, copy: object = True) -> _Dtype:
        if type(code) is not str or code not in DTYPES or align or copy not in (True, 1):
            self.refuse(f"an array of the type '{shortened(code) if type(code) is str else _named(code)}'")
        return _Dtype(self._file, code)


class _Dtype(_StandIn):
    """A dtype of plain numbers; its state tells the byte order."""

    __slots__ = ("_code", "dtype")

    def __init__(self, file: Path, code: str) -> None:
        super().__init__(file)
        self._code, self.dtype = code, np.dtype(code)

    def __setstate__(self, state: object) -> None:
        rest = (None, None, None, -1, -1, 0)
        if type(state) is not tuple or len(state) != 8 or state[0] != 3 or state[2:] != rest:
            self.refuse("an array of a compound type")
        order = state[1]
        if type(order) is not str or order not in ("<", ">", "|", "="):
            self.refuse("an array of an unknown byte order")
        self.dtype = np.dtype(order + self._code)


class _Array(_StandIn):
    """An array, built from the bytes that are there."""

    __slots__ = ("array",)

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.array: np.ndarray | None = None

    def __setstate__(self, state: object) -> None:
        if type(state) is not tuple or len(state) != 5 or state[0] != 1 or type(state[3]) is not bool:
            self.refuse("an array in a form that NumPy does not write")
        _, shape, dtype, is_fortran, content = state
        self.fill(shape, dtype, is_fortran, content)

    def fill(self, shape: Any, dtype: object, is_fortran: bool, content: Any) -> None:
        if type(dtype) is not _Dtype or type(content) not in (bytes, bytearray):
            self.refuse(f"an array of {_named(dtype)} in {_named(content)}")
        if type(shape) is not tuple or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
            self.refuse("an array without a shape")
        check_size(self._file, "an array", shape, dtype.dtype.itemsize, len(content))
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _array(file: Path, name: str, value: object) -> np.ndarray:
    if type(value) is not _Array:
        raise DemonstrationError(f"{file}: '{name}' is {_named(value)}, expected a NumPy array")
    if value.array is None:
        raise DemonstrationError(f"{file}: '{name}' is a NumPy array that was never filled")
    return value.array


def _named(value: object) -> str:
    """The type of what a pickle left, never its content, which may be without end."""
    names = {_ArrayClass: "numpy.ndarray", _Array: "a NumPy array", _Dtype: "numpy.dtype"}
    return names.get(type(value), "a NumPy function" if isinstance(value, _StandIn) else type(value).__name__)

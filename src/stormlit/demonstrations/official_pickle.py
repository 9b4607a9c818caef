"""The trajectories published with STORM: pickled dictionaries of NumPy arrays, read without executing anything.

A pickle is a program for a small machine that can import and call what it likes. The machine here knows the
instructions that arrays are written with, and can do neither: it writes down which of NumPy's names a program wants
called with what, and an array is then made of the bytes in the file, where that is what NumPy itself writes.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from stormlit.demonstrations.data import Demonstration, Timing, check_arrays, check_names, shortened
from stormlit.files import check_claim

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

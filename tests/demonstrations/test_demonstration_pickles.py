"""The official pickles: what the published files hold is read, and nothing is ever executed."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_demonstration_files import refusal

from recorded import OFFICIAL, as_official, catch, counted, write_pickle
from stormlit.demonstrations import read_demonstration
from stormlit.demonstrations.files import SHAPES
from stormlit.envs import EnvSettings, VectorEnv


@pytest.mark.parametrize(
    ("game", "published", "episode_return", "lives_lost"),
    [("Freeway", 2048, 34, 0), ("MsPacman", 1612, 5860, 2), ("Pong", 2079, 18, 0)],
)
@pytest.mark.skipif(OFFICIAL not in os.environ, reason=f"{OFFICIAL} does not name the folder of the published files")
def test_the_published_trajectories(game: str, published: int, episode_return: float, lives_lost: int) -> None:
    demonstration = read_demonstration(Path(os.environ[OFFICIAL]) / f"{game}.pkl")
    assert len(demonstration) == published - 1 and demonstration.obs.shape[1:] == (64, 64, 3)
    assert demonstration.reward.sum() == episode_return and demonstration.life_lost.sum() == lives_lost
    unmoved = read_demonstration(Path(os.environ[OFFICIAL]) / f"{game}.pkl", "as_published")
    assert len(unmoved) == published and np.array_equal(unmoved.action[1:], demonstration.action)
    assert np.array_equal(unmoved.obs[:-1], demonstration.obs) and unmoved.reward.sum() == episode_return
    envs = VectorEnv(EnvSettings(game=game), seed=0)
    assert demonstration.action.max() == envs.num_actions - 1


@pytest.mark.skipif(OFFICIAL not in os.environ, reason=f"{OFFICIAL} does not name the folder of the published files")
def test_the_published_rewards_show_in_the_next_frame() -> None:
    """The score of Ms. Pac-Man stands in the lower left corner, and changes with every reward."""
    demonstration = read_demonstration(Path(os.environ[OFFICIAL]) / "MsPacman.pkl")
    score = demonstration.obs[:, 52:, :40].astype(int)
    changed = np.abs(np.diff(score, axis=0)).max((1, 2, 3)) > 40  # between t and t + 1
    rewarded = demonstration.reward[:-1] != 0
    assert changed[rewarded].mean() > 0.95 > 0.65 > changed[1:][rewarded[:-1]].mean()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_official_format_is_read_by_the_rule_of_timing(protocol: int, tmp_path: Path) -> None:
    """Without the frames that episodes end on, and the first of those that follow, which the format does not have."""
    played = catch(40)
    official = as_official(played)
    frames = list(range(40))
    read = read_demonstration(write_pickle(tmp_path / "a.pkl", official, protocol))
    # After an end, frame 7 is that of the next episode, which the published format would not hold: it is dropped.
    kept = [t for t in frames[:-1] if not official["done"][t]]
    for name in SHAPES:
        assert np.array_equal(getattr(read, name), getattr(played, name)[kept]), name
    assert np.flatnonzero(read.is_first).tolist() == [0, 7, 13, 19, 25, 31]
    assert not read.truncated.any() and read.origin.env_id is None


@pytest.mark.parametrize("dtype", ["i1", ">i8", "u2", "f2", ">f8"])
def test_numbers_of_other_types_are_converted(dtype: str, tmp_path: Path) -> None:
    official = as_official(counted(9))
    expected = read_demonstration(write_pickle(tmp_path / "a.pkl", official))
    official["reward"] = np.abs(official["reward"])
    changed = {**official, "reward": official["reward"].astype(dtype)}
    read = read_demonstration(write_pickle(tmp_path / "b.pkl", changed))
    assert read.reward.dtype == np.float32 and np.array_equal(read.reward, np.abs(expected.reward))


def test_an_array_in_columns_and_one_that_is_used_twice(tmp_path: Path) -> None:
    official = as_official(counted(9))
    expected = read_demonstration(write_pickle(tmp_path / "a.pkl", official))
    nothing = np.zeros(9, bool)
    changed = {**official, "obs": np.asfortranarray(official["obs"]), "done": nothing, "life_loss": nothing}
    read = read_demonstration(write_pickle(tmp_path / "b.pkl", changed))
    assert np.array_equal(read.obs, as_official(counted(9))["obs"][:-1]) and len(expected) == 8
    assert not read.terminated.any() and not read.life_lost.any()


class Calls:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


MARKER = "marker"
CODE = f"open({MARKER!r}, 'w').close()"
TOUCH = f"touch {MARKER}"
RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]  # numpy._core.multiarray._reconstruct


def with_array(value: Any) -> dict[str, Any]:
    return {**as_official(counted(9)), "reward": value}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("evil", "named"),
    [
        (Calls(os.system, TOUCH), f"{os.name}.system"),
        (Calls(builtins.eval, CODE), ".eval"),
        (Calls(np.memmap, MARKER, "uint8", "w+", 0, (10,)), "numpy"),
        (Path(MARKER), "pathlib"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (np.float64(3), "multiarray.scalar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_everything_else_is_refused_by_name_and_not_run(
    evil: Any, named: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (evil, with_array(evil), [evil, as_official(counted(9))]):
        try:
            file = write_pickle(tmp_path / "a.pkl", content, protocol)
        except (TypeError, pickle.PicklingError):  # modules cannot be pickled
            file = tmp_path / "a.pkl"
            file.write_bytes(b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.")
        sentence = refusal(file)
        # What old protocols write bytes and dictionaries with is refused first.
        assert named in sentence or (protocol < 3 and ("_codecs" in sentence or "instruction" in sentence))
        assert "nothing in it was run" in sentence
        assert not (tmp_path / MARKER).exists()


def test_the_marker_would_be_there_if_it_were_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Calls(os.system, TOUCH)))
    assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.array([Calls(os.system, TOUCH)] * 9), f"{os.name}.system"),
        (np.array(["text"] * 9), "'U4'"),
        (Calls(RECONSTRUCT, np.ndarray, (10**12,), b"b"), "expected an array"),
        (Calls(RECONSTRUCT, np.ndarray, (0,), b"O"), "expected an array"),
        (Calls(RECONSTRUCT, np.ndarray, (0,), b"b"), "'reward' is what NumPy's _reconstruct makes, expected an array"),
        (Calls(np.dtype, "O8", False, True), "'reward' is what NumPy's dtype makes"),
        ([0] * 9, "'reward' is list, expected an array"),
        (np.zeros(9, bool), "'reward' is bool, expected numbers"),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(
    value: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refusal(write_pickle(tmp_path / "a.pkl", with_array(value)))
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds list"),
        ({1: 2}, "names that are not text"),
        ({"obs": 1}, "no array 'action'"),
    ],
)
def test_plain_values_that_are_no_demonstration(content: Any, told: str, tmp_path: Path) -> None:
    assert told in refusal(write_pickle(tmp_path / "a.pkl", content))


def text(word: bytes) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word  # SHORT_BINUNICODE


ARRAY_CLASS = text(b"numpy") + text(b"ndarray") + b"\x93"  # STACK_GLOBAL
NEW_ARRAY = text(b"numpy.core.multiarray") + text(b"_reconstruct") + b"\x93" + ARRAY_CLASS + b"K\0\x85C\x01b\x87R"
DTYPE = text(b"numpy") + text(b"dtype") + b"\x93"
UINT8 = DTYPE + text(b"u1") + b"\x89\x88\x87R"
COMPOUND = UINT8 + b"(K\x03" + text(b"|") + b"N" + text(b"a") + b"\x85}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
TERA = b"\x8a\x06" + (10**12).to_bytes(6, "little")  # LONG1
OTHERS = b"".join(text(name) + b"N" for name in (b"action", b"reward", b"done", b"life_loss"))
SHARED_TUPLES = b"N" + b"".join(b"\x94h" + bytes([place]) + b"\x86" for place in range(200))


def as_obs(array: bytes) -> bytes:
    """A program that makes a dictionary with the right names, whose frames are what ``array`` makes."""
    return b"}(" + text(b"obs") + array + OTHERS + b"u."


@pytest.mark.parametrize(
    ("program", "told"),
    [
        # Names reached by the older instructions, and calls by the other ones.
        (b"(" + text(b"touch marker") + b"ios\nsystem\n.", "instruction INST"),
        (b"(cos\nsystem\nS'touch marker'\no.", "os.system"),
        (b"cnumpy\nndarray\n" + TERA + b"\x85\x81.", "instruction NEWOBJ"),
        (text(b"numpy") + text(b"ndarray.tofile") + b"\x93.", "numpy.ndarray.tofile"),
        (b"Pmodule\n.", "PERSID"),
        # What is called cannot be changed, nor what was made be called or changed again.
        (ARRAY_CLASS + b"}" + text(b"a") + b"K\x01sb.", "it changes NumPy's ndarray"),
        (NEW_ARRAY + b")R.", "it calls what NumPy's _reconstruct makes"),
        (NEW_ARRAY + b"K\x01bK\x02b.", "it changes what NumPy's _reconstruct makes"),
        (
            text(b"numpy.core.multiarray") + text(b"_reconstruct") + b"\x93N}" + text(b"_file") + b"K\x01s\x86b.",
            "it changes NumPy's _reconstruct",
        ),
        # States that NumPy does not write.
        (as_obs(NEW_ARRAY + b"Nb"), "'obs' is what NumPy's _reconstruct makes, expected an array"),
        (as_obs(NEW_ARRAY + b"(K\x01" + TERA + b"\x85" + UINT8 + b"\x89C\x01atb"), "(1000000000000,)"),
        (as_obs(NEW_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + UINT8 + b"\x89C\x01atb"), "without a shape"),
        (as_obs(NEW_ARRAY + b"(K\x01K\x01\x85" + ARRAY_CLASS + b"\x89C\x01atb"), "an array of NumPy's ndarray"),
        (as_obs(NEW_ARRAY + b"(K\x01K\x01\x85" + COMPOUND + b"\x89C\x01atb"), "an array of 'u1'"),
        # Time and memory.
        (b"Nr\xff\xff\xff\xff.", "NoneType"),  # remembered as number 4294967295
        (b"Np99999999999\n.", "instruction PUT"),
        (b"h\x05.", "damaged"),
        (b"\x96" + struct.pack("<Q", 10**12) + b"a.", "1000000000000"),
        (b"\x95" + struct.pack("<Q", 10**12) + b"N.", "NoneType"),  # says how long a part is, and takes nothing
        (b"N" + b"\x85" * 1_000_000 + b".", "more than 10,000 instructions"),
        (b"}" + SHARED_TUPLES + b"Ns.", "names that are not text"),
        (b"}N" + b"2\x86" * 100 + b"Ns.", "DUP"),
    ],
)
def test_hostile_programs(program: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pkl"
    file.write_bytes(b"\x80\x04" + program)
    assert told in refusal(file)
    assert not (tmp_path / MARKER).exists()


def test_the_array_that_hostile_programs_are_made_of_is_one(tmp_path: Path) -> None:
    """So that the programs above are refused for what they do."""
    file = tmp_path / "a.pkl"
    file.write_bytes(b"\x80\x04" + as_obs(NEW_ARRAY + b"(K\x01K\x01\x85" + UINT8 + b"\x89C\x01atb"))
    assert "'action' is NoneType" in refusal(file)

"""stormlit's own demonstration format: it gives back what was written, and refuses the rest in one sentence."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recorded import as_official, catch, counted, write_pickle
from stormlit.demonstrations import Demonstration, Origin, read_demonstration, write_npz
from stormlit.demonstrations.files import SHAPES
from stormlit.errors import DemonstrationError

ORIGIN = Origin("stormlit/Catch-v0", 3, ["LEFT", "NOOP", "RIGHT"], {"size": 16, "atari": {"frame_skip": 4}}, "random")


def refusal(file: Path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(DemonstrationError) as refused:
        read_demonstration(file)
    sentence = str(refused.value)
    assert str(file) in sentence and "\n" not in sentence and len(sentence) < 400
    return sentence


def arrays_of(demonstration: Demonstration, **changes: Any) -> dict[str, Any]:
    """What ``write_npz`` writes, with changes; None leaves an array out."""
    metadata = np.frombuffer(json.dumps(dataclasses.asdict(demonstration.origin)).encode(), np.uint8)
    arrays = {name: getattr(demonstration, name) for name in SHAPES}
    all_of_them = {"format": np.int64(1), "metadata": metadata, **arrays, **changes}
    return {name: array for name, array in all_of_them.items() if array is not None}


def save(file: Path, **arrays: Any) -> Path:
    np.savez(file, **arrays)
    return file


def same(first: Demonstration, second: Demonstration) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in SHAPES]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs) and first.origin == second.origin


@pytest.mark.parametrize("origin", [Origin(), ORIGIN])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(origin: Origin, channels: int, tmp_path: Path) -> None:
    written = counted(33, origin=origin)
    written.obs = written.obs[..., :channels]
    write_npz(written, tmp_path / "a.npz")
    assert same(read_demonstration(tmp_path / "a.npz"), written)


def test_a_plain_npz_of_these_arrays_is_read_too(tmp_path: Path) -> None:
    """The format is what docs/demonstrations.md says, so that others can write it."""
    written = counted(12, origin=Origin(env_id="stormlit/Catch-v0"))
    metadata = np.frombuffer(b'{"env_id": "stormlit/Catch-v0"}', np.uint8)
    assert same(read_demonstration(save(tmp_path / "a.npz", **arrays_of(written, metadata=metadata))), written)


def test_a_recording_keeps_what_the_environment_said() -> None:
    played = catch(40)
    assert np.flatnonzero(played.terminated).tolist() == [6, 13, 20, 27, 34]
    assert np.flatnonzero(played.is_first).tolist() == [0, 7, 14, 21, 28, 35]
    assert np.array_equal(played.reward != 0, played.terminated) and not played.truncated.any()
    # Timing: between frame t and the next the paddle moves as action t says.
    column = (played.obs[:, 15, :, 2] == 255).argmax(1) // 2
    inside = ~played.terminated[:-1]
    expected = np.clip(column[:-1] + played.action[:-1] - 1, 0, 7)
    assert np.array_equal(column[1:][inside], expected[inside])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"obs": None}, ["no array 'obs'"]),
        ({"actoin": np.zeros(8)}, ["'actoin'", "did you mean 'action'"]),
        ({"format": None}, ["'format'", "not a stormlit demonstration"]),
        ({"format": np.int64(2)}, ["format 2", "upgrade"]),
        ({"obs": np.zeros((8, 16, 16), np.uint8)}, ["'obs'", "(8, 16, 16)", "(T, Y, X, C)"]),
        ({"obs": np.zeros((8, 16, 0, 3), np.uint8)}, ["'obs'", "(8, 16, 0, 3)"]),
        ({"obs": np.zeros((8, 16, 16, 3), np.float32)}, ["'obs'", "float32", "uint8"]),
        ({"action": np.array([0, 0, -1, 0, 0, 0, 0, 0])}, ["'action' is -1 at step 2"]),
        ({"action": np.zeros(7, np.int64)}, ["'action' has 7 steps where 'obs' has 8"]),
        ({"reward": np.zeros((8, 1), np.float32)}, ["'reward'", "(8, 1)", "(T,)"]),
        ({"reward": np.array([0, np.nan, 0, 0, 0, 0, 0, 0], np.float32)}, ["'reward' is nan at step 1"]),
        ({"life_lost": np.array([object()] * 8)}, ["'life_lost'", "object"]),
        ({"metadata": np.frombuffer(b"{", np.uint8)}, ["metadata", "JSON"]),
        ({"metadata": np.frombuffer(b'{"num_actions": "3"}', np.uint8)}, ["num_actions", "str", "int"]),
        ({"metadata": np.frombuffer(b'{"action_meanings": [1]}', np.uint8)}, ["action_meanings"]),
        ({"metadata": np.zeros(70_000, np.uint8)}, ["metadata", "65,536 bytes"]),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], told: list[str], tmp_path: Path) -> None:
    arrays = arrays_of(counted(8), **changes)
    sentence = refusal(save(tmp_path / "a.npz", **arrays))
    for part in told:
        assert part in sentence


def test_an_empty_demonstration_is_refused(tmp_path: Path) -> None:
    assert "at least one step" in refusal(save(tmp_path / "a.npz", **arrays_of(counted(0))))


def npz_with_header(file: Path, name: str, shape: tuple[int, ...], compression: int = zipfile.ZIP_STORED) -> Path:
    """A demonstration in which one array's header claims another shape."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, array in arrays_of(counted(8)).items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            if key == name:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
                buffer = io.BytesIO()
                np.lib.format.write_array_header_1_0(buffer, header)
                buffer.write(array.tobytes())
            archive.writestr(f"{key}.npy", buffer.getvalue())
    return file


@pytest.mark.parametrize("name", ["obs", "action", "metadata", "format"])
@pytest.mark.parametrize("frames", [10**12, 10**30, 9, 7])
def test_a_claim_beyond_what_is_there_is_refused_before_memory_is_taken(name: str, frames: int, tmp_path: Path) -> None:
    shape = (frames, 16, 16, 3) if name == "obs" else (frames,)
    sentence = refusal(npz_with_header(tmp_path / "a.npz", name, shape))
    assert f"claims '{name}' of shape ({frames}," in sentence


def test_a_file_that_would_unpack_to_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    file = npz_with_header(tmp_path / "a.npz", "obs", (10**12, 16, 16, 3), zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    # The size that the archive's table of contents gives for obs.npy.
    place = content.rindex(b"obs.npy") - 46 + 24
    content[place : place + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    file.write_bytes(content)
    assert "claims 4,294,967,280 bytes of 'obs'" in refusal(file)


def test_an_array_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", **arrays_of(counted(8)))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("obs.npy", b"")
    assert "twice" in refusal(file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"\0" * 100, b"hello", b"\x80\x04."])
def test_files_of_something_else(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    refusal(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.npz")
    assert "not a file" in refusal(tmp_path)
    with pytest.raises(DemonstrationError, match="null byte"):
        read_demonstration(Path("null\0byte"))


def test_files_larger_than_what_is_read_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with file.open("wb") as opened:
        opened.write(b"PK")
        opened.truncate(5 * 2**30)  # takes no space
    assert "5,368,709,120 bytes" in refusal(file)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("a.pkl", {}, "expected the name of a .npz file"),
        ("file/a.npz", {}, "Not a directory|File exists"),
        ("a.npz", {"reward": np.full(8, np.inf, np.float32)}, "'reward' is inf at step 0"),
        ("a.npz", {"origin": Origin(env={"speed": float("nan")})}, "not JSON compliant"),
    ],
)
def test_what_cannot_be_written_is_told(name: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemonstrationError, match=f"{re.escape(str(tmp_path / name))} cannot be written: .*({told})"):
        write_npz(counted(8, **changes), tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_a_file_says_cannot_move_the_cursor(tmp_path: Path) -> None:
    assert "\x1b" not in refusal(save(tmp_path / "a.npz", **arrays_of(counted(8), **{"\x1b[2J": np.zeros(8)})))


def stored(file: Path) -> Path:
    return save(file, **arrays_of(counted(3, size=2)))


def deflated(file: Path) -> Path:
    write_npz(counted(3, size=2), file)
    return file


def pickled(file: Path) -> Path:
    return write_pickle(file, as_official(counted(3, size=2)))


def pickled_as_buffers(file: Path) -> Path:
    return write_pickle(file, as_official(counted(3, size=2)), protocol=5)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # NumPy's hint at a header from Python 2
@pytest.mark.parametrize("write", [stored, deflated, pickled, pickled_as_buffers])
def test_a_mutated_file_is_read_or_refused_by_name(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """400 mutations each: bytes changed, cut out, inserted, moved, or the end missing; seeded."""
    rng = random.Random(7)
    file = write(tmp_path / "a.npz")
    content = file.read_bytes()
    refused = 0
    for _ in range(400):
        mutated = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(len(mutated))
            match rng.randrange(5):
                case 0:
                    mutated[at] = rng.randrange(256)
                case 1:
                    del mutated[at : at + rng.randrange(1, 9)]
                case 2:
                    mutated[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 3:
                    mutated[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
                case 4:
                    del mutated[at:]
            if not mutated:
                break
        file.write_bytes(mutated)
        try:
            read_demonstration(file)
        except DemonstrationError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100

"""Mutated checkpoints are refused with a sentence or make no difference; what a file claims is checked before it is
believed.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stormlit.config.compose import compose, to_tree
from stormlit.errors import CheckpointError, StormlitError
from stormlit.runs.assembly import build_training
from stormlit.runs.checkpoint import read_tensors, verify
from stormlit.runs.device import make_fabric
from stormlit.runs.directory import RunDirectory
from stormlit.runs.run import Run
from stormlit.runs.snapshot import restore_snapshot
from stormlit.tracking import NoneTracker
from training import differences, newest, reseal, train

SHORT = ("loop.warmup_steps=8", "loop.env_steps=20", "checkpoint.every=10", "evaluation.episodes=1")


@dataclass
class Subject:
    """A run, and a training that its checkpoint is loaded into again and again."""

    run: Path
    loaded: Run
    original: dict[str, Any]
    configurations: dict[bytes, dict[str, Any]]  # by the text they were composed from, which takes longest

    @property
    def files(self) -> list[Path]:
        checkpoint = sorted(newest(self.run).iterdir())
        return [*checkpoint, *sorted((self.run / "replay" / "0").iterdir())]

    def load(self) -> dict[str, Any]:
        """All that going on with the run would take from its files, after wiping what was there."""
        training = self.loaded.training
        for module in (training.world_model, training.agent):
            for tensor in module.state_dict().values():
                tensor.zero_()
        training.replay.total_rows = training.progress.env_steps = training.progress.episodes = 0
        checkpoint = newest(self.run)
        verified = verify(checkpoint, replay=True)
        text = (checkpoint / "config.yaml").read_bytes()
        if text not in self.configurations:
            self.configurations[text] = to_tree(compose([str(checkpoint / "config.yaml")]))
        restore_snapshot(self.loaded, verified)
        rows = training.replay.read(0, training.replay.total_rows)
        return {
            "config": self.configurations[text],
            "run_id": verified.manifest.get("run_id"),
            "weights": [module.state_dict() for module in (training.world_model, training.agent)],
            "state": self.loaded.state_dict(),
            "rows": {name: getattr(rows, name).clone() for name in rows.__slots__},
        }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"), "run", *SHORT)


@pytest.fixture
def subject(run: Path) -> Iterator[Subject]:
    config = compose([str(run / "config.yaml")])
    directory = RunDirectory(run)
    training = build_training(config, make_fabric(config))
    subject = Run(config, directory, training, NoneTracker(run, run.parent))
    loaded = Subject(run, subject, {}, {})
    loaded.original = {**loaded.load()}
    loaded.original["weights"] = [
        {name: t.clone() for name, t in state.items()} for state in loaded.original["weights"]
    ]
    yield loaded
    training.envs.close()


def truncate(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def flip(content: bytearray, chance: random.Random) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def cut(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    del content[start : start + chance.randint(1, 64)]


def replace(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    content[start : start + 8] = chance.randbytes(8)


KINDS: tuple[Callable[[bytearray, random.Random], None], ...] = (truncate, flip, cut, replace)


def mutations(files: list[Path], count: int, seed: int) -> Iterator[tuple[Path, str, bytes]]:
    """Files with what they are mutated to; every file in turn, in every way, and now and then gone or another's."""
    chance = random.Random(seed)
    for number in range(count):
        file = files[number % len(files)]
        if number % 97 == 96:
            yield file, "another file", chance.choice([other for other in files if other != file]).read_bytes()
            continue
        content = bytearray(file.read_bytes())
        kind = KINDS[number // len(files) % len(KINDS)]
        kind(content, chance)
        yield file, kind.__name__, bytes(content)


@pytest.mark.parametrize("count", [200, pytest.param(400, marks=pytest.mark.slow)])
def test_no_mutation_is_accepted(count: int, subject: Subject) -> None:
    """Each one is refused, or the state is that of the checkpoint as it was written, to the last bit."""
    refused = harmless = 0
    for file, how, content in mutations(subject.files, count, seed=0):
        before = file.read_bytes()
        file.write_bytes(content)
        try:
            found = list(differences(subject.original, subject.load()))
            assert found == [], f"{file.name}, {how}: silently accepted with other {found}"
            assert file.name == "manifest.json" or content == before, f"{file.name}, {how}: not noticed"
            harmless += 1
        except StormlitError as error:
            assert "\n" not in str(error)
            refused += 1
        finally:
            file.write_bytes(before)
    assert refused + harmless == count and refused > 0.7 * count
    print(f"{count} mutations: {refused} refused, {harmless} without effect")
    for file in subject.files:
        content = file.read_bytes()
        file.unlink()
        if file.name == "manifest.json":
            assert newest(subject.run).name == "step-000000010"
        else:
            with pytest.raises(StormlitError):
                subject.load()
        file.write_bytes(content)
    assert list(differences(subject.original, subject.load())) == []


@pytest.mark.parametrize("count", [80, pytest.param(400, marks=pytest.mark.slow)])
def test_with_checksums_made_to_fit_there_is_still_no_crash(count: int, subject: Subject) -> None:
    """Somebody who changes a file can change its checksum too; what is loaded then is his, but nothing else happens."""
    checkpoint = newest(subject.run)
    sealed = [checkpoint / "manifest.json", checkpoint / "replay-0.json"]
    files = [file for file in subject.files if file.name != "manifest.json"]
    refused = 0
    for file, how, content in mutations(files, count, seed=1):
        before = {path: path.read_bytes() for path in (file, *sealed)}
        file.write_bytes(content)
        with contextlib.suppress(Exception):  # a list of segments that makes no sense, and keeps its old checksum
            reseal(checkpoint)
        try:
            subject.load()
        except StormlitError as error:
            assert "\n" not in str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"{file.name}, {how}: {type(error).__name__}: {error}") from error
        finally:
            for path, original in before.items():
                path.write_bytes(original)
    assert refused > 0.3 * count
    print(f"{count} mutations with checksums that fit: {refused} refused, 0 crashes")
    assert list(differences(subject.original, subject.load())) == []


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two GiB more than the process has now, so that believing a claim of more fails at once and not by chance."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def header(shape: tuple[int, ...], dtype: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def rewrite(archive: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(archive) as read:
        members = {name: read.read(name) for name in read.namelist()}
    with zipfile.ZipFile(archive, "w", compression) as written:
        for name, content in members.items():
            written.writestr(name, change(name, content))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("rows", [10**12, 11])
def test_a_segment_that_claims_more_rows_than_it_has(rows: int, subject: Subject) -> None:
    segment = subject.files[-1]
    replay, checkpoint = subject.loaded.training.replay, newest(subject.run)

    def claim(name: str, content: bytes) -> bytes:
        stored = getattr(replay.storage, name.removesuffix(".npy"))
        dtype = torch.empty(0, dtype=stored.dtype).numpy().dtype
        return header((rows, *stored.shape[1:]), dtype) + content[128:]

    rewrite(segment, claim)
    index = json.loads((checkpoint / "replay-0.json").read_text())
    index["segments"][-1]["end"] = index["segments"][-1]["first"] + rows  # the list agrees with the claim
    named = f"{index['segments'][-1]['first']:012d}-{index['segments'][-1]['end']:012d}.npz"
    segment.rename(segment.with_name(named))
    (checkpoint / "replay-0.json").write_text(json.dumps(index))
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match="replay segment"):
        subject.load()


@pytest.mark.usefixtures("little_memory")
def test_a_bomb_of_zeros_is_not_inflated(subject: Subject) -> None:
    checkpoint = newest(subject.run)
    rewrite(subject.files[-1], lambda name, content: content + bytes(1 << 28), zipfile.ZIP_DEFLATED)
    assert subject.files[-1].stat().st_size < 10 << 20
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match="replay segment"):
        subject.load()
    tensors = checkpoint / "weights.pt"
    torch.save(read_tensors(tensors), tensors)  # with the checksums that zipfile asks for
    rewrite(
        tensors, lambda name, content: bytes(1 << 28) if name.endswith("/data/0") else content, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        read_tensors(tensors)


@pytest.mark.usefixtures("little_memory")
def test_a_tensor_that_claims_more_than_it_has(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(4)}, file)
    assert read_tensors(file)["a"].shape == (4,)
    rewrite(file, lambda name, content: content.replace(b"K\x04", b"J\x00\x00\x00\x40"))  # 4 -> 2**30
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        read_tensors(file)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("where", ["replay", "progress"])
def test_a_counter_beyond_all_rows(where: str, subject: Subject) -> None:
    checkpoint = newest(subject.run)
    state = read_tensors(checkpoint / "training-0.pt")
    if where == "replay":
        state["replay"]["total_rows"] = 10**12
    else:
        state["replay"]["total_rows"] = "many"
    torch.save(state, checkpoint / "training-0.pt")
    reseal(checkpoint)
    with pytest.raises(CheckpointError):
        subject.load()


@pytest.mark.parametrize("position", [2**40])
def test_a_random_state_that_points_elsewhere(position: int, subject: Subject) -> None:
    """NumPy would read there."""
    checkpoint = newest(subject.run)
    state = read_tensors(checkpoint / "training-0.pt")
    state["random"]["numpy"]["state"]["pos"] = position
    torch.save(state, checkpoint / "training-0.pt")
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match="NumPy's random state makes no sense"):
        subject.load()

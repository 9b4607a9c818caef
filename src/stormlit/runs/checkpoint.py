"""Checkpoints: a folder per step, written under another name and then renamed: it is there whole or not.

docs/architecture.md lists its files. No file points to the newest checkpoint: names sort by age, and a folder gets its
name when all of it is on the disk. Files hold tensors and built-in types only and are read with ``weights_only=True``:
nothing in them is ever executed.

``best-000001000/`` has manifest, configuration and weights of the step that was evaluated best, and no run goes on from
it. It is kept until every checkpoint of the run is newer than a better one: a run that goes back forgets that one.

``replay/0/000000000000-000000002500.npz`` has rows 0 to 2500 of process 0's replay buffer, one array per field. Such
files are written once and shared by checkpoints; each lists those it needs in its ``replay-0.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stormlit.errors import CheckpointError, MisfitError
from stormlit.files import npz_headers, read_json, replacing, sha256, sync_folder, write_json
from stormlit.runs.directory import RunDirectory, find_run
from stormlit.storm.replay import ReplayBuffer, ReplayRows

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """The replay rows number ``first`` to ``end`` (counted over all rows ever written), in one file."""

    first: int
    end: int
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.end:012d}.npz"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that ``verify`` has found whole: what loads from one takes it as this, and need not look again.

    segments: the files of replay rows it needs, by the name of its file that lists them; only where a run goes on.
    """

    folder: Path
    manifest: Mapping[str, Any]
    segments: Mapping[str, list[Segment]] = field(default_factory=dict)


def list_checkpoints(run: RunDirectory) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    return sorted(manifest.parent for manifest in run.checkpoints.glob("step-*/manifest.json"))


def newest_valid(run: RunDirectory, *, replay: bool = False) -> tuple[Checkpoint, list[Path]]:
    """The newest checkpoint that is whole, and the newer ones, which are not.

    Says on stderr why it passes over a checkpoint. Raises ``CheckpointError`` when none is left.
    """
    refused: list[Path] = []
    reasons: list[str] = []
    for folder in sorted(run.checkpoints.glob("step-*"), reverse=True):
        try:
            checkpoint = verify(folder, replay=replay)
        except CheckpointError as error:
            refused.append(folder)
            reasons.append(str(error))
            continue
        for reason in reasons:
            print(f"stormlit: {reason}; falling back to the checkpoint before it", file=sys.stderr)
        return checkpoint, refused
    if not refused:
        raise CheckpointError(f"run '{run.name}' in {run.root} has no checkpoint yet")
    raise CheckpointError(f"run '{run.name}' in {run.root} has no usable checkpoint: {reasons[0]}")


def find_checkpoint(reference: str, root: Path, *, replay: bool = False) -> tuple[RunDirectory, Checkpoint, list[Path]]:
    """The run that a word names, its newest valid checkpoint or the one that is named, and newer ones, not valid.

    reference, root: as for ``find_run``.  replay: as for ``verify``.  Raises ``CheckpointError``.
    """
    directory, named = find_run(reference, root)
    if named is not None:
        return directory, verify(named, replay=replay), []
    return directory, *newest_valid(directory, replay=replay)


def best_checkpoint(run: RunDirectory) -> tuple[Path, float] | None:
    """The weights that were evaluated best, and the mean return by which; None where none were kept."""
    for folder in sorted(run.checkpoints.glob("best-*"), reverse=True):  # a later one is a better one
        with contextlib.suppress(CheckpointError, KeyError, TypeError, ValueError):  # damaged: the one before it counts
            return folder, float(read_manifest(folder)["mean_return"])
    return None


def _outdone(run: RunDirectory) -> list[Path]:
    """Best checkpoints for which a better one has come that every checkpoint of the run knows of."""
    found, kept = sorted(run.checkpoints.glob("best-*")), list_checkpoints(run)
    known = [best for best in found if kept and best.name.partition("-")[2] <= kept[0].name.partition("-")[2]]
    return known[:-1]


def discard(folder: Path) -> None:
    """Delete a checkpoint if it is there; in one step, since half of one would look damaged."""
    hidden = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that none is looked for there any more; returns its new place."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier accident at this step
    os.replace(folder, aside)
    return aside


def discard_later(run: RunDirectory, newest_kept: Path | None) -> list[str]:
    """Delete a run's checkpoints after ``newest_kept`` (all with None), and unfinished ones; returns their names."""
    for unfinished in run.checkpoints.glob(".*-*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)
    later = [f for f in run.checkpoints.glob("step-*") if newest_kept is None or f.name > newest_kept.name]
    for best in run.checkpoints.glob("best-*"):
        if newest_kept is None or best.name.partition("-")[2] > newest_kept.name.partition("-")[2]:
            discard(best)
    for folder in later:
        discard(folder)
    return sorted(folder.name for folder in later)


def verify(folder: Path, *, replay: bool = False) -> Checkpoint:
    """Check every file of a checkpoint against its manifest; with ``replay`` the replay rows it needs to go on, too.

    Raises ``CheckpointError`` naming the file that is missing, truncated or changed, or a format newer than this code.
    """
    manifest = read_manifest(folder)
    segments: dict[str, list[Segment]] = {}
    for name in ("config.yaml", "weights.pt"):
        if name not in manifest["files"]:
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: it does not list {name}")
    for name, expected in manifest["files"].items():
        if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: it has no size and SHA-256 of {name}")
        if Path(name).name != name:
            raise CheckpointError(f"{folder / 'manifest.json'} is damaged: {name} is not a file of the folder")
        _verify_file(folder / name, expected["bytes"], expected["sha256"])
        if replay and name.startswith("replay-"):
            rows = folder.parents[1] / "replay" / name.removeprefix("replay-").removesuffix(".json")
            segments[name] = _listed_segments(folder / name)
            for segment in segments[name]:
                _verify_file(rows / segment.name, segment.bytes, segment.sha256)
    return Checkpoint(folder, manifest, segments)


def _listed_segments(index_file: Path) -> list[Segment]:
    """The segments that a checkpoint's ``replay-N.json`` lists; raises ``CheckpointError``."""
    try:
        segments = [Segment(**listed) for listed in read_json(index_file)["segments"]]
        if all(isinstance(number, int) for item in segments for number in (item.first, item.end, item.bytes)):
            return sorted(segments, key=lambda segment: segment.first)
    except (KeyError, TypeError):  # no list of mappings with these keys
        pass
    raise CheckpointError(f"{index_file} is damaged: its list of replay segments makes no sense")


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest, checked in itself; raises ``CheckpointError``."""
    file = folder / "manifest.json"
    manifest = read_json(file)
    for key, kind in (("format", int), ("env_steps", int), ("files", dict)):
        if not isinstance(manifest.get(key), kind):
            raise CheckpointError(f"{file} is damaged: '{key}' is missing or of the wrong type")
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest['format']}, this stormlit reads up to {FORMAT}: upgrade stormlit"
        )
    if manifest.pop("sha256", None) != manifest_digest(manifest):
        raise CheckpointError(f"{file} is damaged: it does not have the SHA-256 that it names")
    return manifest


def _verify_file(path: Path, size: int, digest: str) -> None:
    """Raise ``CheckpointError`` unless the file has ``size`` bytes and the SHA-256 ``digest``."""
    try:
        if not path.is_file():
            raise CheckpointError(f"checkpoint file {path} is missing")
        found = path.stat().st_size
        if found != size:
            raise CheckpointError(f"checkpoint file {path} is truncated: {found} bytes instead of {size}")
        if sha256(path) != digest:
            raise CheckpointError(f"checkpoint file {path} is damaged: its SHA-256 is not the one written down for it")
    except OSError as error:
        raise CheckpointError(f"checkpoint file {path} cannot be read: {error.strerror}") from error


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a file of ``add_tensors`` without executing anything in it; raises ``CheckpointError`` naming the file."""
    try:
        _check_claims(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of a file that is about to be refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint file {path} is missing") from None
    except Exception as error:  # whatever a mutated file makes the reader raise
        raise CheckpointError(
            f"{path} is not a file of plain tensors and was refused; nothing in it was run"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged: expected named states")
    return state


def load_weights(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load a state dict; raises ``MisfitError`` with the name of the first tensor that does not fit."""
    own = module.state_dict()
    for name in [*own, *state]:
        if name not in state:
            reason = f"has no tensor '{name}'"
        elif name not in own:
            reason = f"has no place for '{name}'"
        elif (found := getattr(state[name], "shape", ())) != own[name].shape:
            reason = f"tensor '{name}' has shape {tuple(found)}, expected {tuple(own[name].shape)}"
        else:
            continue
        raise MisfitError(f"the checkpoint is of another configuration: {what} {reason}")
    module.load_state_dict(dict(state))


def load_modules(checkpoint: Checkpoint, world_model: nn.Module, agent: nn.Module) -> None:
    """Load the weights of both modules; raises ``CheckpointError`` as ``load_weights`` does."""
    weights = read_tensors(checkpoint.folder / "weights.pt")
    load_weights(world_model, weights.get("world_model", {}), "world_model")
    load_weights(agent, weights.get("agent", {}), "agent")


def _check_claims(path: Path) -> None:
    """Raise ``ValueError`` for an archive that would grow when it is read: what is claimed has to be there.

    Also raises what ``zipfile`` does for a file that is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member is compressed")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its members claim more bytes than it has")


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class ReplaySegments:
    """One process's files of replay rows.

    folder: where they are.  segments: those of the run as it stands, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments: list[Segment] = []

    def save(self, replay: ReplayBuffer) -> None:
        """Write the rows added since the last segment as a new one; raises ``OSError`` and leaves no part of it."""
        written = self.segments[-1].end if self.segments else 0
        start, end = max(written, replay.total_rows - replay.rows), replay.total_rows
        if start == end:
            return
        path = self.folder / Segment(start, end, 0, "").name
        rows = replay.read(start, end)
        with replacing(path) as file:
            # Straight to the file: in memory the rows would take their size once more.
            np.savez(file, allow_pickle=False, **{name: getattr(rows, name).numpy() for name in ReplayRows.__slots__})
        self.segments.append(Segment(start, end, path.stat().st_size, sha256(path)))

    def index(self, first_row: int) -> dict[str, Any]:
        """What a checkpoint that needs the rows from ``first_row`` on has to know, for JSON."""
        return {"first_row": first_row, "segments": [asdict(item) for item in self.segments if item.end > first_row]}

    def load(self, replay: ReplayBuffer, segments: Sequence[Segment]) -> None:
        """Fill the buffer with the rows its restored counters say it held; later rows on disk are left alone.

        segments: those of a checkpoint, in order, as ``verify`` has found them.
        Raises ``CheckpointError`` when one is missing or does not fit.
        """
        self.segments = list(segments)
        end_row = replay.total_rows
        next_row = end_row - replay.rows
        for segment in self.segments:
            if segment.end <= next_row or segment.first > next_row:
                continue
            rows = _read_segment(self.folder / segment.name, segment.end - segment.first, replay)
            first, last = next_row - segment.first, min(segment.end, end_row) - segment.first
            replay.restore(rows.map(itemgetter(slice(first, last))), segment.first + last)
            next_row = segment.first + last
        replay.total_rows = end_row
        if next_row != end_row:
            raise CheckpointError(f"the replay segment with row {next_row} is missing from {self.folder}")

    def drop_before(self, row: int) -> None:
        """Delete the segments that end before ``row``."""
        for segment in self.segments:
            if segment.end <= row:
                (self.folder / segment.name).unlink(missing_ok=True)
        self.segments = [segment for segment in self.segments if segment.end > row]

    def drop_from(self, row: int) -> None:
        """Delete the files that begin at ``row`` or later, whoever wrote them, and what was left half written."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        for path in self.folder.glob("[0-9]*-*.npz"):
            if int(path.name.partition("-")[0]) >= row:
                path.unlink()
        self.segments = [segment for segment in self.segments if segment.first < row]


def _read_segment(path: Path, count: int, replay: ReplayBuffer) -> ReplayRows:
    """The rows of a segment. Nothing is allocated before every array is known to have the size it should."""
    try:
        _check_claims(path)
        claimed = npz_headers(path)
        for name in ReplayRows.__slots__:
            expected = getattr(replay.storage, name)
            wanted = ((count, *expected.shape[1:]), torch.empty(0, dtype=expected.dtype).numpy().dtype)
            if claimed[name] != wanted:
                raise CheckpointError(
                    f"replay segment {path} does not fit this run: '{name}' has another shape or type"
                )
        with np.load(path, allow_pickle=False) as arrays:
            return ReplayRows(*(torch.from_numpy(arrays[name]) for name in ReplayRows.__slots__))
    except CheckpointError:
        raise
    except Exception as error:  # zip, header and key errors of a damaged file
        raise CheckpointError(f"replay segment {path} is damaged and was refused") from error


class CheckpointWriter:
    """Assembles one checkpoint in a temporary folder; ``commit`` makes it real.

    With several processes each adds its own files, and the first one commits when all have.
    """

    def __init__(self, run: RunDirectory, env_steps: int, kind: str = "step") -> None:
        self.run, self.env_steps = run, env_steps
        self.final = run.checkpoints / f"{kind}-{env_steps:09d}"
        self.temporary = self.final.with_name(f".{self.final.name}.tmp")

    def begin(self, config: str, world_model: nn.Module, agent: nn.Module) -> None:
        """Make the temporary folder anew, with what every checkpoint has.  config: as YAML."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        self.add("config.yaml", config.encode())
        self.add_tensors("weights.pt", {"world_model": world_model.state_dict(), "agent": agent.state_dict()})

    def add(self, name: str, content: bytes | memoryview) -> None:
        """Write a file, and wait until the disk has it; its name is synced with the manifest's.  Raises ``OSError``."""
        with (self.temporary / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def add_tensors(self, name: str, state: Mapping[str, Any]) -> None:
        """state: nested mappings of tensors and built-in types."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.add(name, buffer.getbuffer())

    def commit(self, keep: int, run_id: str = "", **facts: Any) -> Path:
        """Write the manifest, move the folder into place, and delete all but the newest ``keep`` checkpoints.

        run_id: the tracker's.  facts: more for the manifest, in built-in types.
        """
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(self.temporary.iterdir())
        }
        manifest = {"format": FORMAT, "env_steps": self.env_steps, "run_id": run_id, **facts, "files": files}
        write_json(self.temporary / "manifest.json", {**manifest, "sha256": manifest_digest(manifest)})
        discard(self.final)
        os.replace(self.temporary, self.final)
        sync_folder(self.run.checkpoints)
        for stale in list_checkpoints(self.run)[:-keep]:
            discard(stale)
        for outdone in _outdone(self.run):
            discard(outdone)
        return self.final

    def abandon(self) -> None:
        """Remove what has been written, unless it has been committed."""
        shutil.rmtree(self.temporary, ignore_errors=True)

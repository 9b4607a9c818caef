"""Writing a checkpoint: hashed and synced by threads, and made real in one step."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from stormlit.files import sha256, sync_folder, write_json
from stormlit.runs.checkpoint import FORMAT, checkpoint_folder, discard, list_checkpoints, manifest_digest, outdone
from stormlit.runs.directory import RunDirectory


class CheckpointWriter:
    """Assembles one checkpoint in a temporary folder; ``commit`` makes it real.

    With several processes each adds its own files, and the first one commits after all have settled. Files are hashed
    and written to the disk by threads, while what comes next is put together.
    """

    def __init__(self, run: RunDirectory, env_steps: int, folder: Path | None = None) -> None:
        self.run, self.env_steps = run, env_steps
        self.final = folder or checkpoint_folder(run, env_steps)
        self.temporary = self.final.with_name(f".{self.final.name}.tmp")
        self._threads = ThreadPoolExecutor(max_workers=4)
        self._written: list[Future[None]] = []
        self._added: dict[str, tuple[int, Future[str]]] = {}  # the size and SHA-256 of what this process added

    def begin(self) -> None:
        """Make the temporary folder anew."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def close(self, *, abandon: bool) -> None:
        """Wait for the threads; with ``abandon`` remove what has been written, unless it has been committed."""
        self._threads.shutdown()
        if abandon:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def add(self, name: str, content: bytes | memoryview) -> None:
        """Begin to write a file; ``settle`` tells whether that went well."""
        self._written.append(self._threads.submit(_write, self.temporary / name, content))
        self._added[name] = len(content), self._threads.submit(lambda: hashlib.sha256(content).hexdigest())

    def add_tensors(self, name: str, state: Mapping[str, Any]) -> None:
        """state: nested mappings of tensors and built-in types."""
        buffer = io.BytesIO()
        with _without_crc32():
            torch.save(dict(state), buffer)
        self.add(name, buffer.getbuffer())

    def settle(self) -> None:
        """Wait until everything that this process added is on the disk; raises ``OSError``."""
        self._threads.shutdown()
        for written in self._written:
            written.result()

    def commit(self, keep: int, run_id: str = "", **facts: Any) -> Path:
        """Write the manifest, move the folder into place, and delete all but the newest ``keep`` checkpoints.

        run_id: the tracker's.  facts: more for the manifest, in built-in types.
        """
        self.settle()
        files = {path.name: self._listed(path) for path in sorted(self.temporary.iterdir())}
        manifest = {"format": FORMAT, "env_steps": self.env_steps, "run_id": run_id, **facts, "files": files}
        write_json(self.temporary / "manifest.json", {**manifest, "sha256": manifest_digest(manifest)})
        # One of this very step stays a checkpoint, under another name, until the new one is there.
        replaced = self.final.with_name(f"{self.final.name}.replaced")
        if (self.final / "manifest.json").is_file():
            discard(replaced)
            os.replace(self.final, replaced)
        else:
            discard(self.final)
        os.replace(self.temporary, self.final)
        sync_folder(self.run.checkpoints)
        discard(replaced)
        for stale in list_checkpoints(self.run)[:-keep]:
            discard(stale)
        for stale in outdone(self.run):
            discard(stale)
        return self.final

    def _listed(self, path: Path) -> dict[str, Any]:
        """A file as the manifest has it; those of other processes are read again."""
        if path.name in self._added:
            size, digest = self._added[path.name]
            return {"bytes": size, "sha256": digest.result()}
        return {"bytes": path.stat().st_size, "sha256": sha256(path)}


@contextlib.contextmanager
def _without_crc32() -> Iterator[None]:
    """Let ``torch.save`` leave out checksums that ``torch.load`` does not look at: SHA-256 stands for them here."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a file that nobody looks for yet, and wait until the disk has it; its name is synced with the manifest's.

    Raises ``OSError``.
    """
    with path.open("wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:  # the kernel takes 2 GiB at a time at most
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())

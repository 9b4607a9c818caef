"""What a command prints: tables, what went wrong, and streams that may be closed, full, or unable to write a letter."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from stormlit.errors import ElsewhereError, EnvironmentCrashError, IrreproducibleError, StormlitError
from stormlit.files import write_json

LAUNCHERS_FILE = "TORCHELASTIC_ERROR_FILE"  # in the environment of what torchrun has started, as `fabric run` does
PATIENCE_SECONDS = 30.0


def columns(rows: Sequence[Sequence[str]], others: Callable[[str, int], str] = str.rjust) -> list[str]:
    """Lines with columns of equal width: the first to the left, the others as ``others`` puts them.

    >>> columns([["phase", "time"], ["acting", "3"]])
    ['phase   time', 'acting     3']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(others, row[1:], widths[1:])]).rstrip() for row in rows]


def written(file: Path, content: Any) -> str:
    """Write JSON, and tell where; where that fails, as on a full disk, what is told is not lost by it."""
    try:
        write_json(file, content)
    except OSError as error:
        return f"not written to {file}: {error.strerror}"
    return f"written to {file}"


def tell(error: StormlitError) -> None:
    """Print ``error`` as a sentence to standard error, or leave it to the launcher, which ends its summary with it.

    One process speaks for all. The others wait for that, since the launcher stops every process as soon as one has
    ended; one that is still there after ``PATIENCE_SECONDS`` was the only one, and speaks for itself. Those that know
    only of another's failure wait twice as long.
    """
    sentence = f"stormlit: error: {error}"
    file = os.environ.get(LAUNCHERS_FILE)
    if file and not _speaks_for_all(error):
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(PATIENCE_SECONDS * (2 if isinstance(error, ElsewhereError) else 1))
    if file:
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")
            return
    print(sentence, file=sys.stderr)


def _speaks_for_all(error: StormlitError) -> bool:
    """What environments do only their own process knows; most other errors are found by every process."""
    if isinstance(error, ElsewhereError):
        return False
    return isinstance(error, EnvironmentCrashError | IrreproducibleError) or os.environ.get("LOCAL_RANK", "0") == "0"


class Unbreakable:
    """A text stream whose first failure is kept in ``error``; what is written from then on is dropped.

    Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.error = stream, None  # type: tuple[TextIO, Exception | None]
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a letter that the terminal's encoding lacks

    def write(self, text: str) -> int:
        with self._noting_failure():
            if self.error is None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting_failure():
            if self.error is None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.error = error
            # What is left in its buffer, and what other libraries write, goes nowhere from now on.
            with contextlib.suppress(OSError, ValueError):
                descriptor = self._stream.fileno()  # first: a stream without one leaves nothing open
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


@contextlib.contextmanager
def unbreakable_streams() -> Iterator[Unbreakable]:
    """Let neither standard output nor standard error raise inside; gives the former."""
    for descriptor in range(3):  # a file that is opened later must not get the number of a closed stream
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    # Python has None for a stream that was closed when it began: one that takes nothing stands for it.
    sys.stdout, sys.stderr = output, _ = tuple(
        Unbreakable(stream or open(os.devnull))  # noqa: SIM115
        for stream in before
    )
    try:
        yield output
    finally:
        output.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before

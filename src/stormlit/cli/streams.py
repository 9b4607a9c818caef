"""Standard streams that may be closed, full, or unable to write a letter, while a run goes on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


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


def _closed() -> TextIO:
    """A stream that takes nothing, in place of one that was closed when Python began."""
    return open(os.devnull)


@contextlib.contextmanager
def unbreakable_streams() -> Iterator[Unbreakable]:
    """Let neither standard output nor standard error raise inside; gives the former."""
    for descriptor in range(3):  # a file that is opened later must not get the number of a closed stream
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    # Python has None for a stream that was closed when it began.
    sys.stdout, sys.stderr = output, _ = tuple(Unbreakable(stream or _closed()) for stream in before)
    try:
        yield output
    finally:
        output.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before

"""How a command says what went wrong: once, also where several processes find the same."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from stormlit.errors import ElsewhereError, EnvironmentCrashError, IrreproducibleError, StormlitError

LAUNCHERS_FILE = "TORCHELASTIC_ERROR_FILE"  # in the environment of what torchrun has started, as `fabric run` does
PATIENCE_SECONDS = 30.0


def tell(error: StormlitError) -> None:
    """Print ``error`` as a sentence to standard error, or leave it to the launcher, which ends its summary with it.

    One process speaks for all. The others wait for that, since the launcher stops every process as soon as one has
    ended; one that is still there after ``PATIENCE_SECONDS`` was the only one, and speaks for itself. Those that know
    only of another's failure wait twice as long.
    """
    sentence = f"stormlit: error: {error}"
    if os.environ.get(LAUNCHERS_FILE) and not _speaks_for_all(error):
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(PATIENCE_SECONDS * (2 if isinstance(error, ElsewhereError) else 1))
    if not _given_to_launcher(sentence):
        print(sentence, file=sys.stderr)


def _speaks_for_all(error: StormlitError) -> bool:
    """What environments do only their own process knows; most other errors are found by every process."""
    if isinstance(error, ElsewhereError):
        return False
    return isinstance(error, EnvironmentCrashError | IrreproducibleError) or os.environ.get("LOCAL_RANK", "0") == "0"


def _given_to_launcher(sentence: str) -> bool:
    file = os.environ.get(LAUNCHERS_FILE)
    if not file:
        return False
    try:
        Path(file).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")
    except OSError:
        return False
    return True

"""Errors a user can cause, each told in one sentence and ending the process with exit code 2.

The command line prints ``str(error)`` and nothing else; a traceback means a bug in stormlit.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class StormlitError(Exception):
    """Base of every error that is the input's fault rather than the code's."""

    exit_code = 2


class ConfigError(StormlitError):
    """A configuration key, part, option or value that does not exist or has the wrong type."""


class PartError(ConfigError):
    """A part that does not keep what its kind promises (``checks/interfaces.py``)."""


class EnvironmentSetupError(StormlitError):
    """An unknown environment, or one whose observation or action space is not supported."""


class ActionError(StormlitError, ValueError):
    """An action that is outside the action space, or not a number; it is refused before an environment sees it."""


class CheckpointError(StormlitError):
    """A run or checkpoint that cannot be found, read, trusted or fitted into the model."""


class IrreproducibleError(CheckpointError):
    """An episode that does not lead to where it was when it is played again."""


class MisfitError(CheckpointError):
    """A checkpoint that is whole, of another configuration than the one it is to be used with."""


class DemonstrationError(StormlitError):
    """A demonstration that cannot be read, trusted or used with the environment."""


class TrainingError(StormlitError):
    """Training that cannot go on, such as too many non-finite losses in a row."""

    exit_code = 3


class EnvironmentCrashError(TrainingError):
    """Environments that crashed more often than ``env.max_restarts`` allows."""


class ElsewhereError(StormlitError):
    """What another process has found, and tells."""

    exit_code = 3


class EnvironmentContractError(EnvironmentSetupError, EnvironmentCrashError):
    """An environment that breaks Gymnasium's interface or its own spaces: making it anew would not help."""

    exit_code = 2


class SaveError(StormlitError):
    """A checkpoint that could not be written, for want of space or permission."""

    exit_code = 3


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice closest to ``word``, or an empty string.

    >>> nearest("resnt", ["cnn", "resnet"])
    " (did you mean 'resnet'?)"
    >>> nearest("zzz", ["cnn", "resnet"])
    ''
    """
    by_lowercase = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(word.lower(), list(by_lowercase), n=1, cutoff=0.5)
    return f" (did you mean '{by_lowercase[match[0]]}'?)" if match else ""


def counted(number: int, noun: str) -> str:
    """The number with its noun, in the plural where that is due.

    >>> counted(1, "thread"), counted(2, "process")
    ('1 thread', '2 processes')
    """
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural}"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def describe(error: BaseException) -> str:
    """Type, first line and place of an exception that another's code has raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({Path(place.filename).name}, line {place.lineno})"

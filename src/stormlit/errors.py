"""Errors a user can cause, each told in one sentence and ending the process with exit code 2.

The command line prints ``str(error)`` and nothing else; a traceback means a bug in stormlit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StormlitError(Exception):
    """Base of every error that is the input's fault rather than the code's."""

    exit_code = 2


class ConfigError(StormlitError):
    """A configuration key, part, option or value that does not exist or has the wrong type."""


class OptionError(ConfigError):
    """A part's option out of range; begins with the option's bare name, which whoever builds the part completes."""


class PartError(ConfigError):
    """A part that does not keep what its kind promises (``nn/interfaces.py``)."""


class EnvironmentSetupError(StormlitError):
    """An unknown environment, or one whose observation or action space is not supported."""


class CheckpointError(StormlitError):
    """A run or checkpoint that cannot be found, read, trusted or fitted into the model."""


class DemonstrationError(StormlitError):
    """A demonstration that cannot be read, trusted or used with the environment."""


class TrainingError(StormlitError):
    """Training that cannot go on, such as too many non-finite losses in a row."""

    exit_code = 3


class EnvironmentCrashError(TrainingError):
    """Environments that crashed more often than ``env.max_restarts`` allows."""


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


def check_option(option: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ``OptionError`` unless ``low <= value <= high``."""
    if not low <= value <= high:
        expected = f"{low:g} to {high:g}" if high != float("inf") else f"at least {low:g}"
        raise OptionError(f"{option}={value} is out of range: expected {expected}")

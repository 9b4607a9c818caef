"""The command line."""

from stormlit.cli.verbs import main

__all__ = ["main"]

"""stormlit: stochastic Transformer world models (STORM), modular, on PyTorch Lightning.

>>> import stormlit
>>> trained = stormlit.load("my-run")                   # doctest: +SKIP
>>> env = stormlit.make_env(trained.config)             # doctest: +SKIP
>>> trained.world_model, trained.agent, trained.player  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stormlit.config.components import check_part
    from stormlit.runs.api import Trained, load, make_env

try:
    __version__ = metadata.version("stormlit")
except metadata.PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["Trained", "__version__", "check_part", "load", "make_env"]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import, which `stormlit --help` and the `lightning` command should not wait for.
    if name in ("Trained", "load", "make_env"):
        from stormlit.runs import api

        return getattr(api, name)
    if name == "check_part":
        from stormlit.config.components import check_part

        return check_part
    raise AttributeError(f"module 'stormlit' has no attribute '{name}'")

"""Compiling what a GPU would otherwise be told operation by operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, Literal, ParamSpec, TypeVar

import torch
from lightning.fabric import Fabric

from stormlit.errors import ConfigError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Compiled(Generic[Arguments, Result]):
    """A function that is compiled at its first call, for the shapes of its arguments; the same numbers, sooner.

    On a GPU each compiled part is recorded as a CUDA graph. If compiling fails, the function runs as it is from then
    on, after one warning.

    function: without data-dependent control flow.  what: the function in the warning.
    """

    def __init__(self, function: Callable[Arguments, Result], what: str, device: torch.device) -> None:
        # The same random numbers as without compiling, or runs with and without could not be compared.
        torch._inductor.config.fallback_random = True
        self.function, self.what = function, what
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.compiled: Callable[Arguments, Result] | None = torch.compile(
            function, fullgraph=True, dynamic=False, mode=mode
        )

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if self.compiled is not None:
            try:
                return self.compiled(*args, **kwargs)
            except Exception as error:  # of the compiler; one of the function itself comes again below
                self.compiled = None
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"{self.what} could not be compiled and runs uncompiled: {reason}", stacklevel=2)
        return self.function(*args, **kwargs)


def should_compile(setting: Literal["auto", "on", "off"], fabric: Fabric) -> bool:
    """Whether to compile: by default on a GPU, where it saves launches; on a CPU it takes minutes and saves little.

    Raises ``ConfigError`` for ``on`` with several processes, whose gradients are exchanged by hooks that would be
    compiled away.
    """
    if setting == "on" and fabric.world_size > 1:
        raise ConfigError(f"compile=on works with one process, not with {fabric.world_size}; choose auto or off")
    return setting == "on" or (setting == "auto" and fabric.device.type == "cuda" and fabric.world_size == 1)

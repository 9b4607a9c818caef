"""Compiling what a GPU would otherwise be told operation by operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from stormlit.errors import ConfigError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# What could not be compiled in this process, and why.
FAILURES: list[str] = []


class Compiled(Generic[Arguments, Result]):
    """A function that is compiled at its first call, for the shapes of its arguments; the same numbers, sooner.

    On a GPU each compiled part is recorded as a CUDA graph: what it returns is overwritten when any compiled function
    is called again, unless it is copied before. If compiling fails, the function runs as it is from then on, after one
    warning; all other errors, running out of memory among them, are raised. It also runs as it is inside dispatch
    modes, which count operations: the compiler would refuse it there, for good.

    function: without data-dependent control flow.  what: the function in the warning.
    """

    def __init__(
        self,
        function: Callable[Arguments, Result],
        what: str,
        device: torch.device,
    ) -> None:
        # Random numbers of the generator that runs without compiling use, or the two could not be compared.
        torch._inductor.config.fallback_random = True
        self.function, self.what = function, what
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.compiled: Callable[Arguments, Result] | None = torch.compile(
            function, fullgraph=True, dynamic=False, mode=mode
        )

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if self.compiled is not None and not is_in_torch_dispatch_mode():
            try:
                return self.compiled(*args, **kwargs)
            except Exception as error:
                if not _is_of_the_compiler(error):
                    raise
                failure = error
            result = self.function(*args, **kwargs)  # raises what is wrong with the function itself
            self.give_up(failure)
            return result
        return self.function(*args, **kwargs)

    def give_up(self, error: Exception) -> bool:
        """Run uncompiled from now on, after a warning.  Returns False, and does nothing, if that is so already or if
        the error is not the compiler's.
        """
        if self.compiled is None or not _is_of_the_compiler(error):
            return False
        self.compiled = None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"{self.what} could not be compiled and runs uncompiled: {reason}", stacklevel=3)
        FAILURES.append(f"{self.what}: {reason}")
        return True


def _is_of_the_compiler(error: Exception) -> bool:
    """Whether compiling, or recording a CUDA graph, failed for another reason than that memory was short."""
    cause: BaseException = error
    while (inner := getattr(cause, "inner_exception", None)) is not None:  # where the compiler wraps what happened
        cause = inner
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return False
    recording = isinstance(error, RuntimeError) and "captur" in str(error)  # as CUDA's errors of that kind all say
    return recording or type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


def compile_report() -> dict[str, Any]:
    """For benchmarks: what could not be compiled in this process, and how many graphs are replayed in pieces.

    Inductor skips CUDA graphs with no more than a line in its log.
    """
    skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    return {"not_compiled": list(FAILURES), "cuda_graphs_skipped": skipped}


def should_compile(setting: Literal["auto", True, False], fabric: Fabric) -> bool:
    """Whether to compile: by default on a GPU, where it saves launches; on a CPU it takes minutes and saves little.

    Raises ``ConfigError`` for True with several processes, whose gradients are exchanged by hooks that would be
    compiled away.
    """
    if setting is True and fabric.world_size > 1:
        raise ConfigError(f"compile=true works with one process, not with {fabric.world_size}; choose auto or false")
    return setting is True or (setting == "auto" and fabric.device.type == "cuda" and fabric.world_size == 1)

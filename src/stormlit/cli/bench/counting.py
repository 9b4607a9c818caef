"""Counting operations by dispatch: how much a piece of code launches, and where it makes the host wait.

No GPU is needed, because the same operations are dispatched on every device.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

# What the host has to wait for on a GPU: their results, or the sizes of their results, depend on values.
SYNCING = frozenset(
    {
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
        *("nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique", "_unique2", "bincount"),
        "multinomial",  # checks its probabilities first
    }
)
# Views that the schema does not tell, and allocations: these launch nothing.
SILENT = frozenset(
    ("_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)


class OperationCounter(TorchDispatchMode):
    """Counts what is dispatched inside a ``with`` block: forward, backward and optimiser.

    operations: how often each operation ran, by its name without ``aten::``. Views and allocations are left out,
    since they launch nothing; fused and ``foreach`` operations count once.
    syncs: those of them that make the host wait for a GPU, on whichever device they ran. Copies between devices only
    show where there are two: from a GPU always, to a GPU when they block.

    Compiled functions run uncompiled while they are counted, and what a replayed graph launches cannot be seen.
    Composite operations are seen as what they decompose to, all others as one, whatever they launch.
    The backward pass is counted too: modes belong to a thread, so autograd's own threads (which it has for GPUs only)
    are switched off inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._single_thread = torch.autograd.set_multithreading_enabled(False)
        self._single_thread.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._single_thread.__exit__(*exception)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _launches(func):
            name = _name(func)
            self.operations[name] += 1
            if _syncs(name, args, kwargs, result):
                self.syncs[name] += 1
        return result

    def breakdown(self, largest: int = 25) -> str:
        """The totals, the host syncs by name and the most frequent operations, one a line."""
        total = self.operations.total()
        lines = [f"{total:,} operations, {self.syncs.total()} host syncs"]
        lines += [f"  sync {count:5d}  {name}" for name, count in self.syncs.most_common()]
        lines += [f"  {count:10d}  {name}" for name, count in self.operations.most_common(largest)]
        rest = total - sum(count for _, count in self.operations.most_common(largest))
        return "\n".join(lines + ([f"  {rest:10d}  others"] if rest else []))


def _name(func: OpOverload) -> str:
    return str(func._schema.name).removeprefix("aten::")


@functools.cache
def _launches(func: OpOverload) -> bool:
    """Whether an operation computes: it writes a tensor, or returns a new one or a value read from one."""
    schema, name = func._schema, _name(func)
    aliases = [returned.alias_info for returned in schema.returns]
    if name in SILENT or any(alias is not None and not alias.is_write for alias in aliases):
        return False
    makes_tensors = any("Tensor" in str(returned.type) for returned in schema.returns)
    return makes_tensors or schema.is_mutable or name in SYNCING


def _syncs(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
    if name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        waits = source.device.type != "cpu" or not kwargs.get("non_blocking", len(args) > 2 and args[2])
        return source.device.type != result.device.type and waits
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in SYNCING

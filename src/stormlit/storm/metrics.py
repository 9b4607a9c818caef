"""Gathers metrics between two log steps without waiting for the GPU."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class MetricBuffer:
    """Means of scalar metrics since the last ``drain``.

    Tensors are summed on their own device, as one vector per set of keys: an ``add`` costs two small kernels however
    many metrics it brings, and nothing is copied to the host before ``drain``.

    >>> buffer = MetricBuffer()
    >>> buffer.add("agent", {"entropy": torch.tensor(1.0), "updates": 2})
    >>> buffer.add("agent", {"entropy": torch.tensor(2.0), "updates": 2})
    >>> buffer.drain()
    {'agent/updates': 2.0, 'agent/entropy': 1.5}
    """

    def __init__(self) -> None:
        self._on_host: dict[str, tuple[float, int]] = {}  # key -> sum, count
        # Keys, of which the last is for the share of skipped calls -> a vector of the metrics' sums, with their common
        # count as its last element, and the number of calls.
        self._on_device: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def add(self, prefix: str, metrics: Mapping[str, Tensor | float], valid: Tensor | None = None) -> None:
        """Add one value per metric under the key ``prefix/name``; tensors have exactly one element, of any dtype.

        valid: bool scalar on the tensors' device; where it is False, the tensors do not count. The share of such calls
        becomes the metric ``prefix/skipped``.
        """
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        for name, value in metrics.items():
            key = f"{prefix}/{name}" if prefix else name
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, {})[key] = value.detach().float().reshape(())
            else:
                total, count = self._on_host.get(key, (0.0, 0))
                self._on_host[key] = (total + float(value), count + 1)
        for device, values in by_device.items():
            group = (*values, f"{prefix}/skipped" if valid is not None else "")
            added = torch.stack([*values.values(), torch.ones((), device=device)])
            if valid is not None:
                added = added.where(valid, 0.0)
            # Not in place: the sums may have been made in inference mode, and state_dict hands them out. From a
            # checkpoint they come back on the CPU, and go on where an unbroken run would have them.
            sums, calls = self._on_device.get(group, (None, 0))
            self._on_device[group] = (added if sums is None else sums.to(device) + added, calls + 1)

    def drain(self) -> dict[str, float]:
        """Return the mean of every metric added since the last drain, and forget them; one transfer per device."""
        totals = dict(self._on_host)
        for device in {sums.device for sums, _ in self._on_device.values()}:
            groups = [(keys, *entry) for keys, entry in self._on_device.items() if entry[0].device == device]
            values = iter(torch.cat([sums for _, sums, _ in groups]).tolist())
            for (*keys, skipped), _, calls in groups:
                *sums, count = itertools.islice(values, len(keys) + 1)
                for key, value in zip(keys, sums, strict=True):
                    total, seen = totals.get(key, (0.0, 0))
                    totals[key] = (total + value, seen + int(count))
                if skipped:
                    totals[skipped] = (calls - count, calls)
        self._on_host, self._on_device = {}, {}
        return {key: total / count for key, (total, count) in totals.items() if count}

    def state_dict(self) -> dict[str, Any]:
        """What has been added since the last drain."""
        return {
            "on_host": dict(self._on_host),
            "on_device": [(list(keys), sums, calls) for keys, (sums, calls) in self._on_device.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by that of ``state_dict``; the sums may come back on another device."""
        self._on_host = {key: (total, count) for key, (total, count) in state["on_host"].items()}
        self._on_device = {tuple(keys): (sums, calls) for keys, sums, calls in state["on_device"]}
